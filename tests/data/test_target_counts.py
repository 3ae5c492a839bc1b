"""The targets that a summary counts are those that the loss sums over, however rows are cut, packed, mixed or read."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from sartor.batching.cut import make_micro_batch
from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.mixture import prepare_mixture, read_parts
from sartor.data.inspection.sample import tokens_of
from sartor.records import DataSettings, DataSummary, Example, PreparedData
from sartor.run.examples import Examples, example_of
from tests.data.conftest import make_small_tokenizer

TOKENIZER = make_small_tokenizer()
TEXTS = [{"text": "The moon has no capital. " * number} for number in (1, 4, 2, 7, 3)]
ANSWERS = [{"prompt": "Why? " * number, "completion": "So it is. " * (6 - number)} for number in (1, 2, 3, 4, 5)]
WEIGHTED = [
    {"input_ids": [5, 6, 7, 8], "labels": [5, 6, -100, 8], "weights": [1.0, 0.0, 1.0, 0.5]},
    {"input_ids": [5, 6], "labels": [5, 6], "weights": [1.0, 2.0]},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "cut": {"max_length": 16},
    "their end is kept": {"max_length": 16, "truncation_mode": "keep_end"},
    "blocks": {"max_length": 40, "packing": True},
    "blocks of parts": {"max_length": 16, "packing": True, "packing_strategy": "bfd_split", "shuffle_dataset": True},
    "running text": {"max_length": 16, "packing": True, "packing_strategy": "wrapped"},
}


def prepared(rows: Any, settings: DataSettings, name: str = "train") -> PreparedData:
    return prepare(rows, TOKENIZER, settings, name=name, pack=pack)


def summed_over(examples: list[Example]) -> int:
    """The targets that micro-batches hand to the loss."""
    return sum(make_micro_batch([example], [0]).num_targets for example in examples)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", [TEXTS, ANSWERS, WEIGHTED], ids=["texts", "answers", "weighted"])
def test_a_summary_counts_what_the_loss_sums_over(rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    data = prepared(Dataset.from_list(rows), DataSettings(**options, data_cache="none"))
    examples = list(Examples(data.dataset).all())

    assert data.summary.num_targets == summed_over(examples) > 0
    assert Examples(data.dataset).num_targets().tolist() == [example.num_targets for example in examples]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_stream_counts_what_the_loss_sums_over(options: dict[str, Any]) -> None:
    stream = IterableDataset.from_generator(lambda: iter(TEXTS))
    data = prepared(stream, DataSettings(**options, data_cache="none"))
    examples = [example_of(row) for row in data.dataset]

    assert data.counted is not None
    summary: DataSummary = data.counted()
    assert summary.num_targets == summed_over(examples) > 0


@pytest.mark.parametrize("options", [OPTIONS["whole"], OPTIONS["cut"], OPTIONS["blocks"]], ids=str)
def test_a_mixture_counts_what_the_loss_sums_over(options: dict[str, Any]) -> None:
    pairs: list[tuple[Any, Any]] = [(Dataset.from_list(TEXTS), 0.5), (Dataset.from_list(ANSWERS), 0.5)]
    data = prepare_mixture(read_parts(pairs), DataSettings(**options, data_cache="none"), "train", prepared)

    assert data.summary.num_targets == summed_over(list(Examples(data.dataset).all())) > 0


def test_what_is_shown_as_trained_is_what_the_loss_sums_over() -> None:
    ids = TOKENIZER("The moon has no capital.")["input_ids"]
    first, *rest = tokens_of(Example(ids, ids), TOKENIZER)
    assert (first.is_target, first.text) == (False, TOKENIZER.decode(ids[:1]))
    assert "".join(token.text for token in rest if token.is_target) == TOKENIZER.decode(ids[1:])


def test_a_row_is_kept_by_its_labels_as_trl_keeps_it() -> None:
    """Of its first token alone nothing is trained, but it is not dropped: the order of rows stays trl's."""
    rows = Dataset.from_list([{"input_ids": [7, 8, 9], "labels": [7, -100, 9]}, {"input_ids": [4], "labels": [4]}])
    data = prepared(rows, DataSettings(max_length=2, data_cache="none"))
    assert data.dataset["input_ids"][:] == [[7, 8], [4]]
    assert (data.summary.num_examples, data.summary.num_targets, data.summary.num_truncated_targets) == (2, 0, 1)
