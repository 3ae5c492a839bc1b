"""Several sources on the command line and in a file, from the flag to the run's folder."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor.cli import train_flags
from sartor.cli.main import main
from sartor.cli.request import Request, rows_of
from sartor.data.reading.sources import Source
from sartor.errors import DataError
from tests.cli.test_train import model

__all__ = ["model"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_sources_are_given_one_by_one_together_or_in_a_file(tmp_path: Path) -> None:
    together = train_flags.read(["--model", "m", "--data", "a.jsonl:0.7", "b.parquet:0.3"])
    one_by_one = train_flags.read(["--model", "m", "--data", "a.jsonl:0.7", "--data", "b.parquet:0.3"])
    (tmp_path / "run.yaml").write_text("model: m\ndata: ['a.jsonl:0.7', 'b.parquet:0.3']\n")
    from_file = train_flags.read(["--config", str(tmp_path / "run.yaml")])
    assert together.data == one_by_one.data == from_file.data == ("a.jsonl:0.7", "b.parquet:0.3")
    overridden = train_flags.read(["--config", str(tmp_path / "run.yaml"), "--data", "c.csv"])
    assert overridden.data == ("c.csv",)


def test_revisions_and_policies_are_options() -> None:
    request = train_flags.read(["--model=m", "--data=d", "--dataset_revision=v1", "--bad-rows=skip"])
    assert request.own["dataset_revision"] == "v1"
    assert request.fields["bad_rows"] == "skip"


def test_one_source_is_read_as_it_is_and_several_as_parts(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, [{"text": name}]) for name in ("one.jsonl", "two.jsonl"))

    def rows(*sources: str) -> Any:
        return rows_of(Request("m", sources, {}, {}), "train", None)

    alone = rows(f"{one}:0.5")
    assert isinstance(alone, Source)
    assert alone.dataset["text"][:] == ["one.jsonl"]
    parts = rows(f"{one}:0.5", f"{two}:2")
    assert [(part.label, part.weight) for part in parts] == [(str(one), 0.5), (str(two), 2.0)]
    with pytest.raises(DataError, match=r"no file .*three\.jsonl"):
        rows(f"{one}:1", str(tmp_path / "three.jsonl:1"))


def test_rows_to_evaluate_on_are_all_of_a_split_or_of_a_source_or_none(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, split in itertools.product(folders, ("train", "test")):
        folder.mkdir(exist_ok=True)
        write(folder / f"{split}.jsonl", [{"text": f"{folder.name} {split}"}])
    data = (f"{folders[0]}:0.5", f"{folders[1]}:2")

    def rows(**own: Any) -> Any:
        return rows_of(Request("m", data, {}, {"split": "train"} | own), "eval", None)

    assert rows() is None
    parts = rows(eval_split="test")
    assert [(part.weight, part.dataset["text"][:]) for part in parts] == [(None, ["one test"]), (None, ["two test"])]
    assert rows(eval_data=str(folders[0] / "train.jsonl")).dataset["text"][:] == ["one train"]


def test_a_mixture_is_trained_and_counted_in_the_runs_files(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = write(tmp_path / "one.jsonl", [{"text": f"line {number}"} for number in range(30)] + [{"text": ""}])
    Dataset.from_list([{"prompt": "1 + 1 = ", "completion": "2"}] * 30).to_parquet(tmp_path / "two.parquet")
    argv = ["train", "--model", str(model), "--data", f"{one}:3", "--data", f"{tmp_path / 'two.parquet'}:1"]
    argv += ["--output_dir", str(tmp_path / "run"), "--max_steps=2", "--use_cpu", "--no-bf16", "--report_to=none"]
    argv += ["--save_strategy=no", "--bad-rows", "skip"]
    assert main(argv) == 0
    summary = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))["train"]
    assert summary["source_rows"]["one.jsonl"] > summary["source_rows"]["two.parquet"] > 0
    assert any(note.startswith(f"{one} (weight 3): text") for note in summary["notes"])
    assert any("skipped: empty text (one.jsonl, line 31)" in note for note in summary["notes"])
    assert (summary["num_skipped_rows"], summary["skipped_kinds"]) == (1, {"empty text": 1})
