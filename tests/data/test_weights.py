"""What each token weighs: row times message, on exactly the message's tokens; refused where that cannot be told."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.store import dataset_in_memory
from sartor.data.reading.sources import load
from sartor.data.tokens.table import TokenRows
from sartor.errors import DataError
from sartor.records import DataSettings, Packing, PreparedData
from tests.data.conftest import TUTORIAL_TEMPLATE, make_small_tokenizer

TWO_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "The moon"},
    {"role": "assistant", "content": "has no capital"},
]
TOKENIZER = make_small_tokenizer()


def weighing(*weights: Any, key: str = "weight") -> list[dict[str, Any]]:
    """The conversation with these weights; None: without."""
    return [
        message if weight is None else {**message, key: weight}
        for message, weight in zip(TWO_TURNS, weights, strict=True)
    ]


def ready(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> PreparedData:
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    return prepare(dataset, tokenizer, DataSettings(**options), pack=pack)


def told(prepared: PreparedData, tokenizer: Any, row: int = 0) -> list[tuple[str, float]]:
    """Text of neighbouring trained tokens of one weight, and the weight."""
    columns = prepared.dataset[row]
    weights = columns.get("weights") or [1.0] * len(columns["labels"])
    runs: list[tuple[list[int], float]] = []
    last = None
    for place, (label, weight) in enumerate(zip(columns["labels"], weights, strict=True)):
        if label != -100:
            if last != place - 1 or runs[-1][1] != weight:
                runs.append(([], weight))
            runs[-1][0].append(label)
            last = place
    return [(tokenizer.decode(ids), weight) for ids, weight in runs]


def test_row_weights_of_every_format(tokenizer: Any) -> None:
    for row, text in (
        ({"text": "A moon"}, "A moon<|endoftext|>"),
        ({"prompt": "A", "completion": " moon"}, " moon<|endoftext|>"),
        ({"prompt": TWO_TURNS[:1], "completion": TWO_TURNS[1:2]}, "Yo<|im_end|>\n"),
    ):
        prepared = ready([{**row, "weight": 0.5}, {**row, "weight": None}, {**row, "weight": 3}], tokenizer)
        assert [told(prepared, tokenizer, number) for number in range(3)] == [[(text, w)] for w in (0.5, 1.0, 3.0)]
        assert prepared.dataset.features["weights"].feature.dtype == "float32"
        assert any("column weight is what each row weighs" in note for note in prepared.summary.notes)
        assert any("2 rows have a weight other than 1" in note for note in prepared.summary.notes)


@pytest.mark.parametrize("template", [None, TUTORIAL_TEMPLATE], ids=["marked", "proven"])
def test_answers_weigh_row_times_message(template: str | None, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    if template is not None:
        tokenizer.eos_token = "<|im_end|>"
    rows = [{"messages": weighing(None, 0.5, None, 3), "weight": 2.0}]
    prepared = ready(rows, tokenizer, assistant_only_loss=True)
    assert told(prepared, tokenizer) == [("Yo<|im_end|>", 1.0), ("has no capital<|im_end|>", 6.0)]


@pytest.mark.parametrize("template", [None, TUTORIAL_TEMPLATE], ids=["marked", "proven"])
@pytest.mark.parametrize("message", [{"train": False}, {"weight": 0}, {"weight": 2, "train": False}])
def test_an_answer_of_weight_zero_is_no_target(message: dict[str, Any], template: str | None, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    if template is not None:
        tokenizer.eos_token = "<|im_end|>"
    rows = [{"messages": [*TWO_TURNS[:3], {**TWO_TURNS[3], **message}]}]
    prepared = ready(rows, tokenizer, assistant_only_loss=True)
    assert told(prepared, tokenizer) == [("Yo<|im_end|>", 1.0)]
    assert "weights" not in prepared.dataset.column_names  # what is left weighs 1


def test_the_row_in_the_documentation_is_weighed_as_it_says(tokenizer: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (example,) = re.findall(r"```json\n(\{\"weight\".*?)```", page, re.DOTALL)
    prepared = ready([json.loads(example)], tokenizer, assistant_only_loss=True)
    assert told(prepared, tokenizer) == [("Yo<|im_end|>", 1.0)]
    assert "No." in tokenizer.decode(prepared.dataset[0]["input_ids"])


def test_where_everything_is_trained_a_message_is_all_that_the_template_writes_for_it(tokenizer: Any) -> None:
    prepared = ready([{"messages": weighing(2, 0, None, 0.5)}], tokenizer)
    assert told(prepared, tokenizer) == [
        ("<|im_start|>user\nHi<|im_end|>\n", 2.0),
        ("<|im_start|>user\nThe moon<|im_end|>\n", 1.0),
        ("<|im_start|>assistant\nhas no capital<|im_end|>\n", 0.5),
    ]
    assert prepared.dataset[0]["input_ids"] == ready([{"messages": TWO_TURNS}], tokenizer).dataset[0]["input_ids"]


def test_messages_of_a_completion_are_weighed_and_those_of_the_prompt_do_not_count(tokenizer: Any) -> None:
    messages = weighing(7, 5, 0.25, 3)
    rows = [{"prompt": messages[:2], "completion": messages[2:]}]
    start = ("<|im_start|>user\nThe moon<|im_end|>\n", 0.25), ("<|im_start|>assistant\nhas no capital<|im_end|>\n", 3.0)
    assert told(ready(rows, tokenizer), tokenizer)[-1] == start[-1]
    assert [weight for _, weight in told(ready(rows, tokenizer), tokenizer)] == [0.25, 3.0]
    both = ready(rows, tokenizer, assistant_only_loss=True)
    assert told(both, tokenizer) == [("has no capital<|im_end|>", 3.0)]
    everything = ready(rows, tokenizer, completion_only_loss=False)
    assert told(everything, tokenizer)[-2:] == list(start)
    assert [weight for _, weight in told(everything, tokenizer)] == [7.0, 5.0, 0.25, 3.0]


def test_unrolled_answers_keep_their_weights(tokenizer: Any) -> None:
    rows = [{"messages": weighing(None, 0.5, None, 3), "weight": 2}, {"messages": weighing(None, None, None, 0)}]
    prepared = ready(rows, tokenizer, assistant_only_loss=True, unroll=True)
    assert [told(prepared, tokenizer, row) for row in range(len(prepared.dataset))] == [
        [("Yo<|im_end|>", 1.0)],
        [("has no capital<|im_end|>", 6.0)],
        [("Yo<|im_end|>", 1.0)],
    ]


REWRITING = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + (message.content if loop.last else message.content | upper) + eos_token }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def test_messages_of_a_template_that_rewrites_earlier_ones_are_traced(tokenizer: Any) -> None:
    tokenizer.chat_template = REWRITING
    prepared = ready([{"messages": weighing(None, False, None, None, key="train")}], tokenizer)
    shout = [message["content"].upper() for message in TWO_TURNS[:3]] + [TWO_TURNS[3]["content"]]
    parts = [f"<|im_start|>{message['role']}\n{text}" for message, text in zip(TWO_TURNS, shout, strict=True)]
    trained = [text for text, _ in told(prepared, tokenizer)]
    end = tokenizer.eos_token
    assert trained == [parts[0] + end, parts[2] + end + parts[3] + end]


def test_a_row_whose_messages_cannot_be_told_apart_is_refused_only_where_it_matters(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ messages | map(attribute='content') | list | tojson }}{{ messages[0].content }}<|im_end|>"
    )
    with pytest.raises(DataError, match=r"(?s)weights cannot be placed \(train data, row 1\).*first 1 messages alone"):
        ready([{"messages": TWO_TURNS}, {"messages": weighing(2, 1, 1, 1)}], tokenizer)
    same = ready([{"messages": weighing(2, 2, 2, 2)}], tokenizer)
    assert {weight for _, weight in told(same, tokenizer)} == {2.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "A", "weight": -1}, r"the column 'weight' is -1"),
        ({"text": "A", "weight": float("nan")}, r"the column 'weight' is nan"),
        ({"text": "A", "weight": float("inf")}, "the column 'weight' is inf; a weight is 0, or a number between"),
        ({"text": "A", "weight": "2"}, r"the column 'weight' is a str; .*Rename or remove the column"),
        ({"text": "A", "weight": True}, "the column 'weight' is a bool"),
        ({"messages": weighing(None, -2, None, None)}, r"the weight of message 2 \(assistant\) is -2"),
        ({"messages": weighing(None, "high", None, None)}, r"the weight of message 2 \(assistant\) is a str"),
        ({"messages": weighing(None, "no", None, None, key="train")}, r"`train` of message 2 \(assistant\) is a str"),
        ({"messages": weighing(0, 0, 0, 0)}, "every message of it that would be trained has weight 0"),
        ({"input_ids": [1, 2], "weights": [1.0, -1.0]}, r"number 1 \(from 0\) of weights is -1.0"),
        ({"input_ids": [1, 2], "weights": [1.0, None]}, r"number 1 \(from 0\) of weights is missing"),
        ({"input_ids": [1, 2], "weights": [1.0]}, "weights has 1 entries; the row has 2 tokens"),
        ({"input_ids": [1, 2], "weight": "x"}, "the column 'weight' is a str"),
    ],
)
def test_bad_weights_are_problems_that_name_the_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {
        "text": {"text": "A moon"},
        "messages": {"messages": TWO_TURNS},
        "input_ids": {"input_ids": [3, 4]},
    }[next(iter(row))]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=f"(?s)1 of 2 rows cannot be used.*rows.jsonl, line 2.*{message}"):
        prepare(load(str(path)), make_small_tokenizer(), DataSettings())


def test_rows_of_weight_zero_are_left_out_and_counted(tokenizer: Any) -> None:
    rows = [{"messages": TWO_TURNS, "weight": weight} for weight in (0, 1, 0, 2)]
    for options in ({}, {"max_length": None}, {"packing": True}, {"assistant_only_loss": True}):
        prepared = ready(rows, tokenizer, **options)
        assert (prepared.summary.num_rows, prepared.summary.num_dropped_rows) == (4, 2)
        assert any("2 rows have weight 0: nothing of them is trained" in note for note in prepared.summary.notes)
        weights = [weight for row in range(len(prepared.dataset)) for _, weight in told(prepared, tokenizer, row)]
        assert set(weights) == {1.0, 2.0}


def test_tokenized_rows_may_bring_weights_of_their_own(tokenizer: Any) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": None, "weights": [1.0, 0.0, 2.0], "weight": 0.5},
        {"input_ids": [8, 9, 4], "labels": [-100, 9, 4], "weights": None, "weight": None},
    ]
    prepared = ready(rows, tokenizer)
    assert prepared.dataset["weights"][:] == [[0.5, 0.0, 1.0], [1.0, 1.0, 1.0]]
    assert prepared.dataset["labels"][:] == [[5, -100, 7], [-100, 9, 4]]


def test_a_weight_that_a_mapping_shows_is_text_and_no_weight(tokenizer: Any) -> None:
    rows = [{"question": "How heavy?", "weight": 70}]
    mapping = (("user", "{question}"), ("assistant", "{weight} kg"))
    prepared = ready(rows, tokenizer, mapping=mapping)
    assert "weights" not in prepared.dataset.column_names
    other = ready(rows, tokenizer, mapping=(*mapping[:1], ("assistant", "very")))
    assert {weight for _, weight in told(other, tokenizer)} == {70.0}


def test_truncation_moves_weights_with_their_tokens(tokenizer: Any) -> None:
    rows = [{"messages": weighing(None, 0.5, None, 3)}]
    whole = ready(rows, tokenizer, assistant_only_loss=True).dataset[0]
    short = ready(rows, tokenizer, assistant_only_loss=True, max_length=9, truncation_mode="keep_end").dataset[0]
    assert short == {name: values[-9:] for name, values in whole.items()}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["typed", "untyped"])
def test_a_stream_has_weights_wherever_its_rows_may(kind: str, packing: bool, tokenizer: Any) -> None:
    rows = [{"messages": TWO_TURNS}] * 3 + [{"messages": weighing(None, 0.5, None, 3)}]
    made = Dataset.from_list(rows, on_mixed_types="use_json")
    stream = made.to_iterable_dataset() if kind == "typed" else IterableDataset.from_generator(lambda: iter(rows))
    options: dict[str, Any] = {"assistant_only_loss": True, "packing": packing, "max_length": 64}
    found = list(prepare(stream, tokenizer, DataSettings(**options), pack=pack).dataset)
    expected = list(prepare(made, tokenizer, DataSettings(**options), pack=pack).dataset)
    for row, other in zip(found, expected, strict=True):
        assert row["weights"] is None or row["weights"] == other["weights"]
        assert (row["weights"] or [1.0] * len(row["labels"])) == other["weights"]
        assert row["labels"] == other["labels"]


def test_a_stream_without_weights_has_no_such_column(tokenizer: Any) -> None:
    for rows in ([{"text": "A moon"}], [{"messages": TWO_TURNS}], [{"input_ids": [5, 6]}]):
        stream = Dataset.from_list(rows).to_iterable_dataset()
        assert "weights" not in next(iter(prepare(stream, tokenizer, DataSettings()).dataset))


def test_without_weights_tables_are_as_they_were(tokenizer: Any) -> None:
    plain = ready([{"messages": TWO_TURNS}], tokenizer, assistant_only_loss=True)
    ones = ready([{"messages": weighing(1, 1, None, 1.0), "weight": 1}], tokenizer, assistant_only_loss=True)
    assert ones.dataset.column_names == plain.dataset.column_names
    assert ones.dataset[0] == plain.dataset[0]
    assert ones.dataset._fingerprint == plain.dataset._fingerprint


def texts_of(weights: Sequence[float | None]) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": "moon " * (number % 3 + 1)}
        | ({} if weight is None else {"weight": weight})
        for number, weight in enumerate(weights)
    ]


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.sampled_from([None, 0, 0.5, 1, 2]), min_size=2, max_size=6),
    row=st.sampled_from([1, 0.5, 4]),
    assistant_only=st.booleans(),
)
def test_every_token_weighs_what_its_message_does(
    weights: list[float | None], row: float, assistant_only: bool
) -> None:
    """Held to messages that are rendered and tokenized one by one, which chatml allows."""
    messages = texts_of(weights)
    own = [1 if weight is None else weight for weight in weights]
    if not any(weight for weight, m in zip(own, messages, strict=True) if not assistant_only or m["role"] != "user"):
        return
    prepared = ready([{"messages": messages, "weight": row}], TOKENIZER, assistant_only_loss=assistant_only)
    expected: list[tuple[int, float]] = []
    for message, weight in zip(messages, own, strict=True):
        text = TOKENIZER.apply_chat_template([message], tokenize=False)
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        head = f"<|im_start|>{message['role']}\n"
        num_head = len(TOKENIZER(head, add_special_tokens=False)["input_ids"])
        for place, token in enumerate(ids):
            is_answer = message["role"] == "assistant" and num_head <= place < len(ids) - 1
            if weight and (is_answer or not assistant_only):
                expected.append((token, weight * row))
    found = prepared.dataset[0]
    given_weights = found.get("weights") or [1.0] * len(found["labels"])
    trained = [(label, weight) for label, weight in zip(found["labels"], given_weights, strict=True) if label != -100]
    assert trained == expected


def test_tables_move_weights_with_their_tokens() -> None:
    rows = TokenRows.from_lists([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5]], weights=[[0.5, 0.0, 2.0], None])
    other = TokenRows.from_lists([[6]], [[6]])
    both = TokenRows.concatenate([other, rows])
    assert both.weights is not None
    assert both.weights.tolist() == [1.0, 0.5, 0.0, 2.0, 1.0, 1.0]
    assert both.take(np.array([2, 1])).to_lists()["weights"] == [[1.0, 1.0], [0.5, 0.0, 2.0]]
    assert both.truncate(2, "keep_end").to_lists()["weights"] == [[1.0], [0.0, 2.0], [1.0, 1.0]]
    packing = Packing(np.array([2, 0, 1]), np.array([0, 0, 1]), np.array([2, 1, 2]), np.array([2, 1]), True)
    assert both.packed(packing).to_lists()["weights"] == [[1.0, 1.0, 1.0], [0.0, 2.0]]
    assert dataset_in_memory(both)[0]["weights"][:] == [[1.0], [0.5, 0.0, 2.0], [1.0, 1.0]]
    assert TokenRows.concatenate([other, other]).weights is None
