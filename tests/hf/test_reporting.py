"""A log whose disk is full costs what it would have held, and not the run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.hf import tiny

resource = pytest.importorskip("resource", reason="files cannot be limited on this system")


class Limits(TrainerCallback):
    """From a step on no file of this process grows beyond what that step's logs left; to be called first."""

    def __init__(self, step: int, watched: Path) -> None:
        self.step, self.watched = step, watched
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            size = max(path.stat().st_size for path in self.watched.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class Lists(TrainerCallback):
    """A user's own log: a file, of its own folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "own.csv"
        self.path.write_text(" " * 20_000)
        self.num_calls = 0

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.num_calls += 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{state.global_step}\n")


def heard(trainer: Any) -> list[str]:
    told: list[str] = []
    trainer.say = told.append
    return told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
def test_tensorboards_full_disk_is_named_and_costs_its_events_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    events = tmp_path / "events"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(events))
    limits = Limits(2, events)
    trainer = tiny.trainer(tmp_path / "run", report_to="tensorboard", max_steps=5, callbacks=[limits])
    told = heard(trainer)
    try:
        assert trainer.train().global_step == 5
    finally:
        limits.lift()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") == 6
    (first,) = [text for text in told if "TensorBoardCallback cannot log" in text]
    assert str(events) in first
    assert [text for text in told if "events of TensorBoardCallback were lost" in text]


def test_an_own_callbacks_log_may_be_full_and_its_other_errors_are_errors(tmp_path: Path) -> None:
    own = Lists(tmp_path)
    limits = Limits(2, tmp_path)
    trainer = tiny.trainer(tmp_path / "run", max_steps=4, callbacks=[limits, own])
    told = heard(trainer)
    try:
        assert trainer.train().global_step == 4
    finally:
        limits.lift()
    assert own.num_calls == 5
    assert own.path.read_text().split() == ["1", "2"]
    assert [text for text in told if "3 events of Lists were lost" in text]
    own.path.unlink()
    own.path.mkdir()
    with pytest.raises(IsADirectoryError):
        trainer.train()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_script_whose_output_has_no_room_trains_to_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' printed logs go to standard output, its bar to standard error."""
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, name, full)
        trainer = tiny.trainer(tmp_path, max_steps=3, disable_tqdm=name == "stdout")
        assert trainer.train().global_step == 3
        assert getattr(sys, name) is full
        monkeypatch.undo()
    captured = capsys.readouterr()
    word = "output" if name == "stdout" else "error"
    assert f"lost from standard {word}" in captured.out + captured.err
