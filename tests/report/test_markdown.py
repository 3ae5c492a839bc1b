from __future__ import annotations

import pytest

from sartor.report import markdown


def test_control_characters_and_line_breaks_become_spaces_and_joiners_stay() -> None:
    assert markdown.one_line(" a\x00b\u202ec\x1b[31m\r\nd\u2028e ") == "a b c [31m d e"
    assert markdown.one_line("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"


def test_text_is_shown_as_it_is_and_underscores_are_left_alone() -> None:
    assert markdown.text("my_model <b> [x](y) `c` | *") == r"my_model \<b\> \[x\](y) \`c\` \| \*"


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.24, "4.2 s"), (59.9, "1 min 0 s"), (73.2, "1 min 13 s"), (7500, "2 h 5 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert markdown.duration(seconds) == said


def test_floats_keep_all_their_digits() -> None:
    assert [markdown.shown(value) for value in (2e-5, 0.123456789, 3, True, "a|b")] == [
        "2e-05",
        "0.123456789",
        "3",
        "True",
        r"a\|b",
    ]
