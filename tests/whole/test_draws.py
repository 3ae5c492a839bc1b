"""A run whose callbacks draw random numbers goes on with the numbers that it would have drawn, and with its weights."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from sartor import SFTTrainer
from tests.hf import tiny
from tests.whole.test_resume import StopsAt, dropping, same_run

pytestmark = pytest.mark.usefixtures("one_thread")

EVENTS = ("on_epoch_begin", "on_step_begin", "on_step_end", "on_epoch_end", "on_log", "on_evaluate", "on_save")


class Draws(TrainerCallback):
    """Draws at every event, and keeps what it drew by event and step."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[str, int], list[float]] = {}
        self.step = 0
        for event in EVENTS:
            setattr(self, event, self._drawing(event))

    def _drawing(self, event: str) -> Any:
        def draw(args: Any, state: Any, control: Any, **given: Any) -> None:
            self.step = state.global_step
            self.draw(event)

        return draw

    def draw(self, event: str) -> None:
        """One number of each generator; normal ones come in pairs, whose second is kept in a generator's state."""
        numbers = [random.random(), random.gauss(), np.random.rand(), np.random.randn(), float(torch.randn(()))]
        self.drawn.setdefault((event, self.step), []).extend(numbers)

    def measure(self, given: Any) -> dict[str, float]:
        """For `compute_metrics`."""
        self.draw("compute_metrics")
        return {"luck": random.random()}


def drawing(folder: Path, *more: TrainerCallback, **options: Any) -> tuple[SFTTrainer, Draws]:
    """A run of two epochs of five steps, with dropout, that logs, evaluates and saves at different steps."""
    draws = Draws()
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 3}
    trainer = tiny.trainer(
        folder,
        model=dropping(),
        callbacks=[draws, *more],
        compute_metrics=draws.measure,
        eval_dataset=tiny.texts(5),
        **{**steps, "num_train_epochs": 2, **options},
    )
    return trainer, draws


def assert_goes_on(whole: Draws, resumed: Draws) -> None:
    """Assert that what the resumed run drew is what the other one drew at the same places."""
    assert resumed.drawn
    for place, numbers in resumed.drawn.items():
        if place[0] == "on_epoch_begin" and place not in whole.drawn:
            continue  # an epoch that is gone on with begins anew for callbacks, as in transformers' Trainer
        assert numbers == whole.drawn[place], place


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, (3, 5, 7, 9)), ({"save_strategy": "epoch", "eval_strategy": "epoch"}, (6, 9))],
    ids=["steps", "epochs"],
)
def test_a_killed_run_draws_what_it_would_have_drawn(
    options: dict[str, Any], steps: tuple[int, ...], tmp_path: Path
) -> None:
    """In the midst of an epoch, at its last step, at its end, and after an evaluation."""
    whole, drawn = drawing(tmp_path / "whole", **options)
    whole.train()
    for step in steps:
        stopped, _ = drawing(tmp_path / str(step), StopsAt(step), **options)
        with pytest.raises(ZeroDivisionError):
            stopped.train()
        torch.rand(3), np.random.rand(3), random.random()
        resumed, again = drawing(tmp_path / str(step), **options)
        resumed.train(resume_from_checkpoint=True)
        assert_goes_on(drawn, again)
        same_run(whole, resumed)


class Interrupts(TrainerCallback):
    """Presses Ctrl-C at the n-th call of an event."""

    def __init__(self, event: str, call: int) -> None:
        self.left = call
        setattr(self, event, self._press)

    def _press(self, *given: Any, **more: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX'")
@pytest.mark.parametrize(
    ("event", "call"), [("on_prediction_step", 2), ("on_step_begin", 4), ("on_step_end", 3), ("on_epoch_end", 1)]
)
def test_an_interrupted_run_draws_what_it_would_have_drawn(event: str, call: int, tmp_path: Path) -> None:
    """Also where an evaluation is interrupted, which is done anew."""
    whole, drawn = drawing(tmp_path / "whole")
    whole.train()
    stopped, _ = drawing(tmp_path / "stopped", Interrupts(event, call))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    random.random(), torch.rand(3), np.random.rand(2)
    resumed, again = drawing(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_goes_on(drawn, again)
    same_run(whole, resumed)


def test_how_often_a_run_saves_does_not_change_what_it_draws(tmp_path: Path) -> None:
    """Nor what is drawn while it does."""
    runs = []
    for every in (2, 5):
        trainer, _ = drawing(tmp_path / str(every), save_steps=every)  # which sets the seed
        trainer.train()
        runs.append(trainer)
    same_run(*runs)
