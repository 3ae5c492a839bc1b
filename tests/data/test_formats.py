"""What rows are is told from all of them, and named; other tools' shapes become the same conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.data.encoding.encode import prepare
from sartor.data.reading.sources import load
from sartor.data.reading.tables import dataset_of
from sartor.data.rows.kinds import Kind, kind_of, kinds_of_dataset, kinds_of_rows
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData, Row, RowFormat

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
SHOWS_TOOLS = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<{{ call.function.name }} {{ call.function.arguments | tojson }}>"
    "{% endfor %}|{% endfor %}{% if tools %}{{ tools | length }} tools{% endif %}"
)


def ready(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> PreparedData:
    return prepare(load(rows), tokenizer, DataSettings(**options))


def text(prepared: PreparedData, tokenizer: Any, column: str = "input_ids") -> str:
    return tokenizer.decode([token for token in prepared.dataset[0][column] if token != -100])


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "messages": {"messages": HI},
    "sharegpt": {"conversations": TURNS},
    "roles in conversations": {"conversations": HI},
    "sharegpt's keys in messages": {"messages": TURNS},
    "other names of the model": {"conversations": [TURNS[0], {"from": "chatgpt", "value": "Yo"}]},
}


@pytest.mark.parametrize("row", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_conversations_of_any_shape_give_the_same_tokens(row: dict[str, Any], tokenizer: Any) -> None:
    prepared = ready([row], tokenizer)
    assert prepared.dataset[:] == ready([{"messages": HI}], tokenizer).dataset[:]
    assert prepared.summary.format is RowFormat.MESSAGES


def test_alpacas_columns_are_a_prompt_and_its_completion(tokenizer: Any) -> None:
    asked = [{"role": "user", "content": "Add.\n\n1 2"}]
    answer = [{"role": "assistant", "content": "3"}]
    expected = ready([{"prompt": asked, "completion": answer}], tokenizer)
    prepared = ready([{"instruction": "Add.", "input": "1 2", "output": "3"}], tokenizer)
    assert prepared.dataset[:] == expected.dataset[:]
    assert any("Alpaca" in note for note in prepared.summary.notes)
    plain = ready([{"instruction": "Add.", "input": "", "output": "3"}], tokenizer)
    assert text(plain, tokenizer).startswith("<|im_start|>user\nAdd.<|im_end|>")


def test_alpacas_system_and_history_come_first(tokenizer: Any) -> None:
    row = {"instruction": "Why?", "input": None, "output": "Sigh.", "system": "Be grim.", "history": [["Hi", "Yo"]]}
    messages = [{"role": "system", "content": "Be grim."}, *HI, {"role": "user", "content": "Why?"}]
    completion = [{"role": "assistant", "content": "Sigh."}]
    expected = ready([{"prompt": messages, "completion": completion}], tokenizer)
    assert ready([row], tokenizer).dataset[:] == expected.dataset[:]


def test_plain_text_is_preferred_to_alpacas_columns_as_trl_does_and_said(tokenizer: Any) -> None:
    prepared = ready([{"instruction": "a", "output": "b", "text": "The moon."}], tokenizer)
    assert prepared.summary.format is RowFormat.TEXT
    assert any("instruction and output would be read" in note for note in prepared.summary.notes)


def test_sharegpts_function_calls_observations_and_system_are_converted(tokenizer: Any) -> None:
    tokenizer.chat_template = SHOWS_TOOLS
    row = {
        "system": "Be brief.",
        "tools": json.dumps([{"name": "add"}]),
        "conversations": [
            {"from": "human", "value": "1+2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "Three."},
        ],
    }
    said = text(ready([row], tokenizer), tokenizer)
    assert said == 'system:Be brief.|user:1+2?|assistant:<add {"a": 1}>|tool:3|assistant:Three.|1 tools'


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [TURNS[0], {"from": "alien", "value": "Yo"}]}, "unknown role.*'alien'"),
        ({"conversations": [TURNS[0], {"from": "gpt", "value": None}]}, "missing content.*message 2"),
        ({"conversations": [TURNS[0], {"from": "function_call", "value": "{"}]}, "bad function call.*not JSON"),
        ({"conversations": [TURNS[0], {"from": "function_call", "value": "[]"}]}, "bad function call"),
        ({"conversations": [{"from": "system", "value": "a"}, *TURNS], "system": "b"}, "two system messages"),
        ({"conversations": TURNS, "system": 5}, "'system' holds a int"),
        ({"messages": HI, "tools": "{"}, "bad tools.*not JSON"),
        ({"messages": HI, "tools": {"a": 1}}, "bad tools.*not a list"),
        ({"instruction": "a", "output": ""}, "empty assistant message"),
        ({"instruction": " ", "output": "b"}, "empty user message"),
        ({"instruction": "a", "output": 5}, "'output' holds a int"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "'history' is no list of"),
    ],
)
def test_rows_that_cannot_be_converted_are_named(row: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=rf"1 of 1 rows.*\n.*{said}"):
        ready([row], tokenizer)


def test_a_system_column_that_repeats_the_first_message_is_no_contradiction(tokenizer: Any) -> None:
    turns = [{"from": "system", "value": "Be grim."}, *TURNS]
    prepared = ready([{"conversations": turns, "system": "Be grim."}], tokenizer)
    assert text(prepared, tokenizer).count("Be grim.") == 1


def test_rows_of_another_format_are_counted_with_the_first_line_of_each(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"messages": HI}] * 4 + [{"text": "The moon."}, {"messages": HI}, {"text": "Rubber boots."}]
    rows.append({"prompt": "a", "completion": "b"})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        prepare(load(path), tokenizer, DataSettings())
    message = str(caught.value)
    assert "3 of 8 rows cannot be used" in message
    assert "another format (3 times, first in mixed.jsonl, line 5): it is text." in message
    assert "5 are messages (first mixed.jsonl, line 1), 2 are text (first mixed.jsonl, line 5)" in message
    assert "1 are prompt + completion (first mixed.jsonl, line 8)" in message
    skipped = prepare(load(path), tokenizer, DataSettings(bad_rows="skip"))
    assert skipped.summary.num_examples == 5
    assert skipped.summary.skipped_kinds == {"another format": 3}


def test_the_format_is_that_of_most_rows_and_not_of_the_first(tokenizer: Any) -> None:
    rows = [{"text": "The moon."}, {"messages": HI}, {"messages": HI}]
    with pytest.raises(DataError, match=r"another format \(train data, row 0\): it is text"):
        ready(rows, tokenizer)


def test_prompts_as_text_and_as_messages_are_two_formats(tokenizer: Any) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": HI[:1], "completion": HI[1:]}]
    with pytest.raises(DataError, match=r"it is prompt \+ completion, as messages"):
        ready(rows, tokenizer)


def test_rows_without_any_known_column_filled_are_told_what_they_lack(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"missing value \(train data, row 1\): the column 'messages' has no value"):
        ready([{"messages": HI}, {"mesages": HI}], tokenizer)


def test_a_stream_of_several_formats_names_its_rows(tokenizer: Any) -> None:
    rows = [{"messages": HI, "text": None}] * 3 + [{"messages": None, "text": "The moon."}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(DataError, match=r"another format \(train data, row 3\): it is text"):
        list(prepare(stream, tokenizer, DataSettings()).dataset)


VALUES = st.sampled_from([None, "x", HI])
ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "text", "prompt", "completion", "instruction", "output"]), VALUES
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_kinds_read_off_the_table_are_those_of_each_row(rows: list[dict[str, Any]]) -> None:
    dataset = dataset_of(Row(row, "a.jsonl", number, is_line=True) for number, row in enumerate(rows, 1))
    assert kinds_of_dataset(dataset, "text", "train") == kinds_of_rows(dataset.to_list(), "text", "train")


def test_kinds_are_chosen_in_a_stated_order() -> None:
    filled = ["instruction", "output", "text", "conversations", "messages", "prompt", "completion", "input_ids"]
    seen = []
    while filled:
        kind = kind_of(filled, is_messages=False, text_column="text")
        if kind is not None and kind not in seen:
            seen.append(kind)
        filled.pop()
    assert seen == [
        Kind.TOKENIZED,
        Kind.PROMPT_COMPLETION,
        Kind.MESSAGES,
        Kind.CONVERSATIONS,
        Kind.TEXT,
        Kind.ALPACA,
    ]


def test_text_that_looks_like_a_number_stays_text_beside_numbers() -> None:
    values = ["72", 5, "[1]", None, {"a": 1}, 2.5, True]
    dataset = dataset_of(Row({"value": value}, "a.jsonl", 1) for value in values)
    assert dataset["value"][:] == values
    nested = [["72", 5], None, [{"a": "[1]"}, {"b": [None]}]]
    dataset = dataset_of(Row({"value": value}, "a.jsonl", 1) for value in nested)
    assert dataset["value"][:] == nested


def test_types_that_change_late_in_a_file_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartor.data.reading.tables.ROWS_PER_CHUNK", 2)
    rows: list[dict[str, Any]] = [
        {"a": "72", "b": [{"x": 1}]},
        {"a": None, "b": None},
        {"a": 72, "b": [{"y": "1"}]},
        {"c": 1.5},
        {"a": {"z": [1]}, "b": []},
    ]
    dataset = dataset_of(Row(row, "a.jsonl", number) for number, row in enumerate(rows))
    found = [{name: row[name] for name in "abc"} for row in dataset.to_list()]
    assert found == [{name: row.get(name) for name in "abc"} for row in rows]
    assert isinstance(dataset, Dataset)
