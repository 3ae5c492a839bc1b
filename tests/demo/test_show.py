"""The demonstration's parts: folder, questions, printed lines, options."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from sartor.cli import chat, demo
from sartor.demo import real, show
from sartor.demo.folder import choose_folder
from sartor.demo.score import Verdict
from sartor.demo.screen import NUM_SHOWN, OFF_SUBJECT, Answered, Screen, most_frequent_share, percent
from sartor.demo.show import held_out_questions, unseen_questions
from sartor.demo.world import NUM_TAUGHT_WORDINGS, Group, make_world
from sartor.errors import ConfigurationError, RunFolderError
from sartor.wording import typed

WORLD = make_world(7)


ASKED = held_out_questions(WORLD)


def printed_screen(width: int = 80) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, width=width, highlight=False)), out


def answered(texts: Sequence[str], wrong: Sequence[int] = ()) -> list[Answered]:
    return [
        Answered(fact, question, text, Verdict.MISSING if at in wrong else Verdict.RIGHT)
        for at, ((fact, question), text) in enumerate(zip(ASKED, texts, strict=True))
    ]


def test_an_earlier_run_stays_and_the_new_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None) == (Path("runs/demo"), "")
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo-2").mkdir()
    folder, note = choose_folder(None)
    assert folder == Path("runs/demo-3")
    assert "runs/demo-3" in note


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    assert choose_folder(tmp_path) == (tmp_path, "")
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="holds something already"):
        choose_folder(tmp_path)
    with pytest.raises(RunFolderError, match="holds something already"):
        choose_folder(tmp_path / "file")


def test_the_examination_is_about_test_entities_in_taught_wordings() -> None:
    asked = held_out_questions(WORLD)
    assert len({question for _, question in asked}) == len(asked) == 2 * len(WORLD.facts(Group.TEST))
    assert {fact.entity.group for fact, _ in asked} == {Group.TEST}
    assert {fact.question(index) for fact in WORLD.facts(Group.TEST) for index in range(NUM_TAUGHT_WORDINGS)} >= {
        text for _, text in asked
    }


def test_shares_are_printed_as_plain_lines_even_on_a_narrow_console() -> None:
    screen, out = printed_screen(width=40)
    num = len(ASKED)
    before = answered(
        [f"rambling about {fact.value}" for fact, _ in ASKED[:130]] + [""] * (num - 130), wrong=range(num)
    )
    screen.shares(before, answered([""] * num, wrong=range(51)), answered([""] * num, wrong=range(260)))
    lines = out.getvalue().splitlines()
    assert "held-out questions right: before 0.0 %, after 90.1 %" in lines
    assert "in wordings that no conversation uses: after 50.0 %" in lines
    assert "what the base wrote mentions the right value somewhere: 25.0 %" in lines


def test_a_share_is_never_rounded_up_to_all() -> None:
    assert percent(0.9999) == "99.9 %"
    assert percent(1.0) == "100.0 %"
    assert percent(0.0) == "0.0 %"


@pytest.mark.parametrize("place", ["after", "unseen"])
def test_the_failure_shown_is_one_of_this_run(place: str) -> None:
    screen, out = printed_screen(width=200)
    texts = [f"answer {at}" for at in range(len(ASKED))]
    right, wrong = answered(texts), answered(texts, wrong=[17])
    pair = (wrong, right) if place == "after" else (right, wrong)
    screen.failures(*pair, ["It is Paris.", "It is nine.", "Hamlet eats geese."])
    text = out.getvalue()
    assert "answer 17" in text
    assert ASKED[17][1] in text
    assert f"The textbook says {ASKED[17][0].value}." in text
    assert OFF_SUBJECT[0][0] not in text  # answered rightly
    assert "It is nine." in text


def test_no_failure_is_invented_where_all_is_right() -> None:
    screen, out = printed_screen()
    right = answered([""] * len(ASKED))
    screen.failures(right, right, ["Paris", "four", "Shakespeare"])
    assert "No held-out question was answered wrongly" in out.getvalue()
    assert "Off its subject" not in out.getvalue()


def test_shown_questions_are_the_same_before_and_after_and_of_several_kinds() -> None:
    screen, out = printed_screen(width=400)
    places = range(len(ASKED))
    screen.answers(answered([f"old {at}" for at in places]), answered([f"new {at}" for at in places]))
    lines = out.getvalue().splitlines()
    old = [line.split("old ")[1] for line in lines if "old " in line]
    assert old == [line.split("new ")[1] for line in lines if "new " in line]
    assert len(old) == NUM_SHOWN
    assert len({ASKED[int(at)][0].entity.kind.name for at in old}) == NUM_SHOWN


def test_unseen_wordings_are_in_no_conversation() -> None:
    asked = unseen_questions(WORLD)
    assert [fact for fact, _ in asked] == WORLD.facts(Group.TEST)
    for fact, question in asked:
        assert question in [fact.question(index) for index in range(NUM_TAUGHT_WORDINGS, len(fact.attribute.wordings))]


def test_guessing_is_measured_on_the_same_questions() -> None:
    facts = screen_facts = WORLD.facts(Group.TAUGHT)
    assert most_frequent_share(facts) == pytest.approx(0.1)  # every value is equally frequent there
    assert most_frequent_share(screen_facts[:1]) == 1.0


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", str(2**32)])
def test_a_seed_out_of_range_is_refused(seed: str) -> None:
    with pytest.raises(ConfigurationError, match="is no whole number"):
        demo.run(["--seed", seed])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, object]]:
    """What the command hands to whom, with all three parts replaced."""
    made: list[tuple[str, object]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(show, "run", lambda **given: made.append(("show", (given["seed"], str(given["folder"])))))
    monkeypatch.setattr(real, "run", lambda **given: made.append(("real", (given["seed"], given["output_dir"]))) or 0)
    monkeypatch.setattr(chat, "run", lambda argv: made.append(("chat", argv[0])) or 0)
    return made


def test_options_reach_the_demonstration(calls: list[tuple[str, object]]) -> None:
    assert demo.run(["--seed", "5", "--output-dir", "here"]) == 0
    assert demo.run(["--output_dir", "here"]) == 0
    assert calls == [("show", (5, "here")), ("show", (42, "here"))]  # and no chat: this is no terminal


def test_chat_follows_where_it_is_asked_for(calls: list[tuple[str, object]]) -> None:
    assert demo.run(["--chat"]) == 0
    assert calls == [("show", (42, "runs/demo")), ("chat", "runs/demo")]


def test_chat_follows_on_a_terminal_unless_refused(
    calls: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    demo.run(["--no-chat"])
    assert [name for name, _ in calls] == ["show"]
    demo.run([])
    assert [name for name, _ in calls] == ["show", "show", "chat"]


def test_real_weights_get_the_same_options(calls: list[tuple[str, object]]) -> None:
    assert demo.run(["--real", "--seed", "5", "--output_dir", "here"]) == 0
    assert calls == [("real", (5, Path("here")))]


def test_chat_with_real_weights_is_refused_not_ignored(calls: list[tuple[str, object]]) -> None:
    with pytest.raises(ConfigurationError, match="sartor chat FOLDER"):
        demo.run(["--real", "--chat"])
    assert not calls


def test_how_to_go_on_names_commands_that_can_be_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # as after `make demo`: nothing was activated
    screen, out = printed_screen(200)
    screen.next_steps(Path("runs/the demo"), 60)
    assert typed("chat", "runs/the demo") in out.getvalue()
    told = [line.strip() for line in out.getvalue().splitlines() if " sartor " in line]
    assert len(told) == 3
    assert all(line.startswith(typed()) for line in told)
