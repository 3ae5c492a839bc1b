"""Data sets in every form that the trainer takes: pairs of sources and weights, dictionaries of splits, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings
from sartor.run.preparation import Preparation
from tests.data.conftest import make_small_tokenizer


def preparation(*, skips: bool = False, **options: Any) -> Preparation:
    settings = DataSettings(**options)
    return Preparation(
        make_small_tokenizer(), settings, settings, formatting_func=None, skips=skips, has_collator=False
    )


def rows(text: str, count: int) -> Dataset:
    return Dataset.from_list([{"text": text}] * count)


def test_a_list_of_sources_and_weights_is_mixed(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps({"text": "b"}) + "\n" for _ in range(20)))
    prepare = preparation(mix_until="all_exhausted_without_replacement")
    dataset = prepare.prepare([(rows("a", 20), 1), (str(path), 3)], "train")
    assert len(dataset) == 40
    assert prepare.summaries["train"].source_rows["b.jsonl"] == 20
    texts = prepare.places["train"]
    assert {texts.where(number).split(",")[0] for number in range(40)} == {"b.jsonl", "train (source 1) data"}


def test_the_train_split_of_a_dictionary_is_used_and_said() -> None:
    prepare = preparation()
    dataset = prepare.prepare(DatasetDict(test=rows("b", 1), train=rows("a", 3)), "train")
    assert len(dataset) == 3
    assert any("The split 'train' of the DatasetDict is used" in note for note in prepare.summaries["train"].notes)
    with pytest.raises(DataError, match="splits 'x', 'y'"):
        prepare.prepare(DatasetDict(x=rows("b", 1), y=rows("a", 3)), "train")


def test_sources_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="some have none"):
        preparation().prepare([(rows("a", 1), 1), (rows("b", 1), None)], "train")
    with pytest.raises(DataError, match="skip_prepare_dataset"):
        preparation(skips=True).prepare([(rows("a", 1), 1), (rows("b", 1), 1)], "train")
