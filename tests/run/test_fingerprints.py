"""What a run trains on, in short: taken once, where it is prepared, and the same wherever it is taken."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor import SFTTrainer
from sartor.data.encoding import assemble
from sartor.run import fingerprints
from sartor.run.examples import Examples
from tests.hf import tiny

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "in memory": {"data_cache": "none"},
    "kept": {},
    "packed": {"packing": True, "max_length": 16},
    "shuffled": {"shuffle_dataset": True},
}


def taken(trainer: SFTTrainer) -> dict[str, str]:
    """Of a trainer's run."""
    data = trainer.refresh().data
    return fingerprints.fingerprints(data, trainer.model, trainer.processing_class, own_loss=False)


def weighted() -> Dataset:
    ids = [[1, 4, 5, 2], [1, 6, 7, 8, 2]]
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "weights": [[0.0, 1.0, 2.0, 1.0], [0.0, 0.5, 1, 1, 1]]})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_digest_of_prepared_data_is_that_of_its_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made anew, found in the cache, and taken from the rows themselves."""
    monkeypatch.setattr(assemble, "CACHED_FROM_BYTES", 0)
    options = {"data_cache": str(tmp_path / "cache"), **CONFIGURATIONS[name]}
    digests = []
    for _ in range(2):
        trainer = tiny.trainer(tmp_path / "run", eval_dataset=tiny.texts(3, start=40), **options)
        digests.append(trainer.preparation.digest_of(trainer.train_dataset))
        assert trainer.preparation.digest_of(trainer.eval_dataset) is not None
    assert digests[0] == digests[1] == fingerprints.content_digest(trainer.train_dataset)
    assert len(digests[0]) == 32


def test_every_column_counts() -> None:
    whole = weighted()
    found = {fingerprints.content_digest(whole)}
    for name, value in (("input_ids", 9), ("labels", -100), ("weights", 3.0)):
        rows = whole.to_list()
        rows[1][name][2] = value
        found.add(fingerprints.content_digest(Dataset.from_list(rows)))
    found.add(fingerprints.content_digest(whole.remove_columns("weights")))
    found.add(fingerprints.content_digest(whole.select([1, 0])))
    found.add(fingerprints.content_digest(whole.add_column("seq_lengths", [[4], [2, 3]])))
    found.add(fingerprints.content_digest(whole.add_column("seq_lengths", [[4], [3, 2]])))
    assert len(found) == 8


def test_no_row_is_read_for_the_fingerprints_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(tmp_path, eval_dataset={"a": tiny.texts(3, start=40), "b": tiny.texts(2, start=50)})

    def refuse(*_: Any) -> Any:
        raise AssertionError("rows were read again")

    with monkeypatch.context() as patch:
        patch.setattr(Examples, "take", refuse)
        before = taken(trainer)
    trainer.train_dataset = trainer.train_dataset.select(range(len(trainer.train_dataset)))
    assert taken(trainer) == before  # another object, whose rows are read, and are the same
    trainer.train_dataset = trainer.train_dataset.select(range(3))
    assert taken(trainer)["data"] != before["data"]


def test_a_transform_that_is_set_later_is_seen(tmp_path: Path) -> None:
    """It is set on the very object that was prepared."""
    trainer = tiny.trainer(tmp_path)
    before = taken(trainer)["data"]
    trainer.train_dataset.set_transform(lambda rows: rows)
    assert taken(trainer)["data"] == before
    trainer.train_dataset.set_transform(lambda rows: {**rows, "input_ids": [ids[::-1] for ids in rows["input_ids"]]})
    assert taken(trainer)["data"] != before


def test_saving_the_model_makes_no_other_model_of_it(tmp_path: Path) -> None:
    """transformers writes the name of the class into the configuration when it saves."""
    trainer = tiny.trainer(tmp_path / "run")
    before = taken(trainer)
    trainer.save_model(str(tmp_path / "model"))
    assert taken(trainer) == before
