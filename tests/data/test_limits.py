"""Rows that a model could not look up, or that contradict themselves, are found with their row before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.reading.sources import load
from sartor.errors import ConfigurationError, DataError, SartorWarning
from sartor.records import DataSettings
from tests.data.conftest import make_small_tokenizer

GOOD = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
BAD: dict[str, dict[str, Any]] = {
    "id outside the vocabulary": {"input_ids": [1, 100, 3], "labels": [-100, 2, 3]},
    "bad token ids": {"input_ids": [1, -1, 3], "labels": [-100, 2, 3]},
    "label outside the vocabulary": {"input_ids": [1, 2, 3], "labels": [-100, 100, 3]},
    "bad labels": {"input_ids": [1, 2, 3], "labels": [-100, -1, 3]},
    "bad seq_lengths": {**GOOD, "seq_lengths": [2, 2]},
    "bad completion_mask": {"input_ids": [1, 2, 3], "completion_mask": [0, 1]},
    "bad assistant_masks": {"input_ids": [1, 2, 3], "assistant_masks": [0, 1]},
    "bad attention_mask": {**GOOD, "attention_mask": [1, 1]},
    "bad position_ids": {**GOOD, "position_ids": [0, 1, 2, 3]},
    "more tokens than positions": {"input_ids": [1] * 9, "labels": [1] * 9},
}
LIMITS: dict[str, Any] = {"num_embeddings": 100, "num_positions": 8}


def padded(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows, each with the columns of all."""
    columns = {column for row in rows for column in row}
    return [{column: row.get(column) for column in columns} for row in rows]


@pytest.mark.parametrize("source", ["list", "file", "Dataset"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named(kind: str, source: str, tmp_path: Path) -> None:
    rows = padded(GOOD, GOOD, BAD[kind])
    place, given = "train data, row 2", rows
    if source == "file":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        place, given = "a.jsonl, line 3", tmp_path / "a.jsonl"
    elif source == "Dataset":
        given = Dataset.from_list(rows)
    with pytest.raises(DataError) as caught:
        prepare(load(given), make_small_tokenizer(), DataSettings(**LIMITS))
    assert f"{kind} ({place})" in str(caught.value)
    assert "1 of 3 rows" in str(caught.value)


@pytest.mark.filterwarnings("ignore::sartor.errors.SartorWarning")
@pytest.mark.parametrize("kind", BAD)
def test_such_rows_are_skipped_and_counted_where_that_is_asked_for(kind: str) -> None:
    settings = DataSettings(**LIMITS, bad_rows="skip")
    prepared = prepare(load(padded(GOOD, BAD[kind], GOOD)), make_small_tokenizer(), settings)
    assert prepared.dataset["input_ids"][:] == [[1, 2, 3], [1, 2, 3]]
    assert prepared.summary.skipped_kinds == {kind: 1}


def test_negative_documents_that_add_up_are_found() -> None:
    with pytest.raises(DataError, match="bad seq_lengths"):
        prepare(load([{**GOOD, "seq_lengths": [5, -2]}]), make_small_tokenizer(), DataSettings())


@pytest.mark.parametrize("kind", BAD)
def test_a_stream_names_such_a_row_when_it_is_read(kind: str) -> None:
    stream = Dataset.from_list(padded(GOOD, BAD[kind])).to_iterable_dataset()
    prepared = prepare(stream, make_small_tokenizer(), DataSettings(**LIMITS))
    with pytest.raises(DataError, match=rf"{kind} \(train data, row 1\)"):
        list(prepared.dataset)
    prepared = prepare(stream, make_small_tokenizer(), DataSettings(**LIMITS, bad_rows="skip"))
    with pytest.warns(SartorWarning, match=kind):
        assert len(list(prepared.dataset)) == 1


def test_prepared_data_of_another_model_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    rows = load([{"input_ids": [1, 2, 150], "labels": [1, 2, 150]}] * 4_000)
    settings = {"data_cache": str(tmp_path / "cache")}
    prepare(rows, make_small_tokenizer(), DataSettings(**settings, num_embeddings=151))
    with pytest.raises(DataError, match="outside the vocabulary"):
        prepare(rows, make_small_tokenizer(), DataSettings(**settings, num_embeddings=150))


def test_a_tokenizer_larger_than_the_embedding_is_found_in_the_rows_that_need_it() -> None:
    tokenizer = make_small_tokenizer()
    ids = [tokenizer(text + "<|endoftext|>")["input_ids"] for text in ("moon", "Sigh")]
    rows = load([{"text": "moon"}, {"text": "Sigh"}])
    limit = max(ids[1])
    assert max(ids[0]) != limit
    bad = 1 + (max(ids[0]) >= limit)
    with pytest.raises(DataError, match=f"{bad} of 2 rows"):
        prepare(rows, tokenizer, DataSettings(num_embeddings=limit))
    assert len(prepare(rows, tokenizer, DataSettings(num_embeddings=max(map(max, ids)) + 1)).dataset) == 2


def test_documents_count_as_they_are_cut_and_packed() -> None:
    rows = load([{"input_ids": [1] * 9, "labels": [1] * 9}] * 2)
    tokenizer = make_small_tokenizer()
    assert len(prepare(rows, tokenizer, DataSettings(max_length=8, num_positions=8)).dataset) == 2
    packed = {"packing": True, "max_length": 16, "num_positions": 8}
    with pytest.raises(DataError, match="max_length=8"):
        prepare(rows, tokenizer, DataSettings(**packed), pack=pack)
    with pytest.raises(ConfigurationError, match="max_length=8"):
        prepare(rows, tokenizer, DataSettings(**packed, packing_strategy="wrapped"), pack=pack)
    blocks = load([{"input_ids": [1] * 12, "labels": [1] * 12, "seq_lengths": [8, 4]}])
    assert len(prepare(blocks, tokenizer, DataSettings(num_positions=8)).dataset) == 1
