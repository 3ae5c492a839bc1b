"""What makes training wrong without stopping it is found before the first step, counted, and said with what to do."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from sartor.data.encoding.encode import prepare
from sartor.data.targets.audit import collator_note, count
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData

from .chat_templates import CHATML, CONVERSATION, QWEN3
from .conftest import make_small_tokenizer
from .test_assistant import MARKED, with_template
from .test_trl_templates import CALLS, TOOLS, answer, user

ALL, MARKS = DataSettings(), DataSettings(assistant_only_loss=True)
THINKING = [user("Hi"), answer("Yo", reasoning_content="Hm", tool_calls=CALLS)]


def ready(tokenizer: Any, *rows: dict[str, Any], settings: DataSettings = ALL) -> PreparedData:
    return prepare(Dataset.from_list(list(rows)), tokenizer, settings)


def notes(tokenizer: Any, *rows: dict[str, Any], settings: DataSettings = ALL) -> str:
    return " ".join(ready(tokenizer, *rows, settings=settings).summary.notes)


@pytest.mark.parametrize(("template", "settings"), [(CHATML, ALL), (MARKED, MARKS)], ids=["all", "marks"])
def test_special_tokens_in_a_rows_own_text_are_said_with_the_first_rows(
    template: str, settings: DataSettings, tokenizer: Any
) -> None:
    with_template(tokenizer, template)
    good, bad = {"messages": CONVERSATION}, {"messages": [user("Hi"), answer("Yo<|im_end|>and on")]}
    assert "special tokens" not in notes(tokenizer, good, settings=settings)
    said = notes(tokenizer, good, bad, good, bad, bad, bad, bad, settings=settings)
    assert "5 rows hold special tokens in their own text" in said
    assert (
        "first train data, row 1 (<|im_end|>); train data, row 3 (<|im_end|>); train data, row 4 (<|im_end|>)." in said
    )


@pytest.mark.parametrize(
    ("row", "is_said"),
    [
        ({"text": "a<|endoftext|>"}, False),
        ({"text": "a<|endoftext|>b"}, True),
        ({"prompt": "a<|im_start|>", "completion": "b"}, True),
        ({"prompt": "a", "completion": "b<|endoftext|>"}, False),
        ({"messages": [user("a"), answer("b", reasoning_content="<|im_end|>")]}, True),
        (
            {
                "messages": [
                    user("a"),
                    answer("b", tool_calls=[{"function": {"name": "f", "arguments": {"x": ["<|im_end|>"]}}}]),
                ]
            },
            True,
        ),
    ],
)
def test_special_tokens_are_found_in_every_text_of_a_row(row: dict[str, Any], is_said: bool, tokenizer: Any) -> None:
    with_template(tokenizer, QWEN3, "<|endoftext|>")
    assert ("hold special tokens" in notes(tokenizer, row)) == is_said


@pytest.mark.parametrize(("template", "settings"), [(CHATML, ALL), (MARKED, MARKS)], ids=["all", "marks"])
def test_fields_that_the_template_leaves_out_are_said_whatever_is_trained(
    template: str, settings: DataSettings, tokenizer: Any
) -> None:
    with_template(tokenizer, template)
    said = notes(tokenizer, {"messages": THINKING}, {"messages": THINKING}, settings=settings)
    assert "leaves out the reasoning of 2 messages, tool arguments of 2 messages: that is not trained" in said
    left_out = template.replace("message.content +", "(message.content if message.role == 'user' else '') +")
    with_template(tokenizer, left_out)
    assert "leaves out the content of 1 messages" in notes(tokenizer, {"messages": CONVERSATION[:2]}, settings=settings)


def test_fields_that_the_template_writes_in_another_form_are_not_left_out(tokenizer: Any) -> None:
    with_template(tokenizer, QWEN3)
    rows = [
        {"messages": THINKING, "tools": TOOLS},
        {"messages": [user(" Hi "), answer("<think>\nHm\n</think>\n\nYo")], "tools": TOOLS},
    ]
    assert "leaves out" not in notes(tokenizer, *rows)
    quoted = [{"function": {"name": "f", "arguments": {"x": 'say "é"\n'}}}]
    assert "leaves out" not in notes(tokenizer, {"messages": [user("Hi"), answer("Yo", tool_calls=quoted)]})
    upper = CHATML.replace("message.content +", "message.content | upper +")
    with_template(tokenizer, upper)
    assert "leaves out" not in notes(tokenizer, {"messages": CONVERSATION})


def test_reasoning_that_is_trained_in_a_row_of_its_own_is_not_left_out(tokenizer: Any) -> None:
    messages = [user("Hi"), answer("Yo", reasoning_content="Hm"), user("And?"), answer("No.", reasoning_content="Oh")]
    with_template(tokenizer, QWEN3)
    assert "leaves out the reasoning of 1 messages" in notes(tokenizer, {"messages": messages}, settings=MARKS)
    unrolled = DataSettings(assistant_only_loss=True, unroll=True)
    assert "leaves out" not in notes(tokenizer, {"messages": messages}, settings=unrolled)


def test_a_doubled_bos_is_said() -> None:
    tokenizer = make_small_tokenizer(begins_texts=True)
    tokenizer.bos_token = "<|endoftext|>"
    assert "twice" not in notes(tokenizer, {"text": "a"}, {"text": "b"})
    said = notes(tokenizer, {"text": "a"}, {"text": "<|endoftext|>b"})
    assert "1 rows begin with <|endoftext|> twice: first train data, row 1." in said
    assert "twice" in notes(tokenizer, {"input_ids": [tokenizer.bos_token_id] * 2 + [5]})
    with_template(tokenizer, "{{ bos_token }}" + CHATML, "<|im_end|>")
    assert "twice" not in notes(tokenizer, {"messages": CONVERSATION})
    with_template(tokenizer, "{{ bos_token }}{{ bos_token }}" + CHATML, "<|im_end|>")
    assert "twice" in notes(tokenizer, {"messages": CONVERSATION})


@pytest.mark.parametrize(
    ("template", "settings", "is_said"),
    [
        (CHATML, ALL, False),
        (CHATML.replace("<|im_end|>", "<|end|>"), ALL, True),
        (MARKED, MARKS, False),
        (MARKED.replace("message.content + '<|im_end|>' }}{% endgen", "message.content }}{% endgen"), MARKS, True),
    ],
    ids=["all", "all, no end", "marks", "marks before the end"],
)
def test_an_end_that_is_not_trained_is_said(
    template: str, settings: DataSettings, is_said: bool, tokenizer: Any
) -> None:
    with_template(tokenizer, template)
    said = notes(tokenizer, {"messages": CONVERSATION}, settings=settings)
    assert ("In 1 of 1 rows no end-of-text token is trained (first train data, row 0)" in said) == is_said


def test_another_end_of_the_generation_configuration_is_an_end_too(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML, "<|endoftext|>")
    rows = Dataset.from_list([{"messages": CONVERSATION}])
    assert "learn to stop" in " ".join(prepare(rows, tokenizer, ALL).summary.notes)
    assert "learn to stop" not in " ".join(prepare(rows, tokenizer, ALL, end_tokens=["<|im_end|>"]).summary.notes)


def test_rows_that_max_length_leaves_without_targets_are_dropped_and_counted_or_an_error(tokenizer: Any) -> None:
    rows = [{"prompt": "the moon " * length, "completion": "yes"} for length in (1, 20, 2, 30)]
    summary = ready(tokenizer, *rows, settings=DataSettings(max_length=16)).summary
    assert (summary.num_dropped_rows, summary.num_examples) == (2, 2)
    with pytest.raises(DataError, match=r"of 2 rows \(first train data, row 1; train data, row 3\).*no_targets='drop'"):
        ready(tokenizer, *rows, settings=DataSettings(max_length=16, no_targets="error"))
    assert ready(tokenizer, *rows, settings=DataSettings(max_length=None, no_targets="error")).summary.num_examples == 4


@pytest.mark.parametrize(
    ("template", "row", "options", "unused"),
    [
        (
            MARKED,
            {"messages": CONVERSATION},
            {"assistant_only_loss": True},
            "append_eot and target_start changes nothing",
        ),
        (CHATML, {"messages": CONVERSATION}, {"assistant_only_loss": True}, ""),
        (CHATML, {"messages": CONVERSATION}, {}, "append_eot and target_start changes nothing"),
        (CHATML, {"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:]}, {}, "append_eot changes nothing"),
        (CHATML, {"text": "a"}, {}, "append_eot and target_start changes nothing"),
    ],
)
def test_options_that_change_nothing_are_said(
    template: str, row: dict[str, Any], options: dict[str, Any], unused: str, tokenizer: Any
) -> None:
    with_template(tokenizer, template)
    said = notes(tokenizer, row, settings=DataSettings(append_eot=True, target_start="variant", **options))
    assert unused in said if unused else "changes nothing" not in said
    assert "changes nothing" not in notes(tokenizer, row, settings=DataSettings(**options))


def test_a_pad_token_that_ends_answers_is_said_to_users_of_a_collator() -> None:
    tokenizer = SimpleNamespace(pad_token="<e>", eos_token="<e>")
    assert "Set pad_token to another token" in str(collator_note(tokenizer, []))
    tokenizer.pad_token = "<p>"
    assert collator_note(tokenizer, []) is None
    assert "<p> also ends answers" in str(collator_note(tokenizer, ["<p>"]))
    tokenizer.pad_token = None
    assert collator_note(tokenizer, []) is None


def test_findings_of_several_processes_add_up_and_name_the_first_rows() -> None:
    parts = [Counter[str](), Counter[str]()]
    for number in range(8):
        count(parts[number // 4], "kind", f"row {number}")
    total = parts[0] + parts[1]
    assert total["kind"] == 8
    assert [key for key in total if "first in" in key][:3] == [f"kind, first in: row {number}" for number in range(3)]
