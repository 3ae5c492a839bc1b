"""What is read of a stream is counted as rows in memory are, once, and its examples know their file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.mixture import prepare_mixture, read_parts
from sartor.data.reading import sources
from sartor.data.reading.places import Places, RecentPlaces
from sartor.records import DataSettings, PreparedData
from tests.data.conftest import make_small_tokenizer

BAD = {"messages": [{"role": "robot", "content": "Hi"}]}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "So. " * number}]}
    for number in range(1, 150)
]


def prepared(rows: Any, **options: Any) -> PreparedData:
    settings = DataSettings(**options, data_cache="none")
    return prepare(rows, make_small_tokenizer(), settings, pack=pack)


def read(data: PreparedData, epoch: int = 0, count: int | None = None) -> list[Any]:
    data.dataset.set_epoch(epoch)
    return list(islice(data.dataset, count))


@pytest.mark.filterwarnings("ignore:train data. skipped")
@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 200},
        {"max_length": 200, "packing": True},
        {"max_length": 200, "packing": True, "packing_strategy": "bfd_split", "shuffle_dataset": True},
        {"max_length": 40, "assistant_only_loss": True, "bad_rows": "skip"},
        {"max_length": None, "unroll": True, "assistant_only_loss": True},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_counts_are_those_of_the_same_rows_in_memory_and_each_row_counts_once(options: dict[str, Any]) -> None:
    rows = [*ROWS[:70], *([BAD] * ("bad_rows" in options)), *ROWS[70:]]
    memory = prepared(Dataset.from_list(rows), **options)
    stream = prepared(Dataset.from_list(rows).to_iterable_dataset(), **options)
    assert stream.summary.num_rows == 0
    assert stream.counted is not None
    for epoch in range(2):
        read(stream, epoch)
        found, expected = stream.counted(), memory.summary
        for field in fields(found):
            if field.name not in ("notes", "num_examples", "longest_tokens"):
                assert getattr(found, field.name) == getattr(expected, field.name), field.name
        if not options.get("shuffle_dataset"):  # a stream is shuffled otherwise, and so packed into other blocks
            assert (found.num_examples, found.longest_tokens) == (expected.num_examples, expected.longest_tokens)
        assert set(expected.notes) <= set(found.notes)


def test_what_was_not_read_is_not_counted() -> None:
    stream = prepared(Dataset.from_list(ROWS).to_iterable_dataset())
    assert stream.counted is not None
    read(stream, count=3)
    assert stream.counted().num_rows == 64  # so many are read at once


@pytest.mark.filterwarnings("ignore:train data. skipped")
@pytest.mark.parametrize("packing", [False, True])
def test_examples_know_their_file_and_line(packing: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*ROWS[:5], BAD, *ROWS[5:]]))
    stream = sources.load(path).to_iterable_dataset()
    options = {"max_length": 600, "packing": packing, "bad_rows": "skip"}
    memory = prepared(sources.load(path), **options)
    data = prepared(stream, **options)
    for epoch in range(2):
        examples = read(data, epoch)
        assert len(examples) == len(memory.dataset) == len(data.places)
        for number, example in enumerate(examples):
            assert example["input_ids"] == memory.dataset[number]["input_ids"]
            assert data.places.where(number) == memory.places.where(number)


def test_a_stream_that_is_shuffled_knows_no_places() -> None:
    assert prepared(Dataset.from_list(ROWS).to_iterable_dataset(), shuffle_dataset=True).places is None


def test_old_places_are_forgotten_and_recent_ones_known() -> None:
    places = RecentPlaces(num_kept=10)
    for first in range(0, 100, 4):
        places.append(Places.of_texts([f"a.jsonl, line {number}" for number in range(first, first + 4)]))
    assert len(places) == 100
    assert places.where(99) == "a.jsonl, line 99"
    assert places.where(90) == "a.jsonl, line 90"
    assert places.where(3) == "example 3 of the stream (from 0)"
    assert [places.between(91, 98).where(number) for number in (0, 6)] == ["a.jsonl, line 91", "a.jsonl, line 97"]
    places.restart()
    assert len(places) == 0


def test_a_mixture_of_streams_counts_what_was_read_of_each() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield {"prompt": "a", "completion": "b c d"}

    tokenizer = make_small_tokenizer()
    pairs = [(IterableDataset.from_generator(endless), 0.5), (Dataset.from_list(ROWS).to_iterable_dataset(), 0.5)]

    def prepare_one(rows: Any, how: DataSettings, name: str) -> PreparedData:
        return prepare(rows, tokenizer, how, name=name, pack=pack)

    for options in ({}, {"packing": True, "max_length": 700}):
        mixed = prepare_mixture(read_parts(pairs), DataSettings(**options), "train", prepare_one)
        examples = read(mixed)
        assert mixed.counted is not None
        found = mixed.counted()
        assert found.num_rows == sum(found.source_rows.values()) > len(ROWS)
        assert set(found.source_rows) == {"train (source 1) data", "train (source 2) data"}
        if options:
            assert found.num_examples == len(examples)
            assert found.num_tokens == sum(len(example["input_ids"]) for example in examples)
