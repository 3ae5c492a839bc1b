"""What ends one job does not end the next: a run that is resumed goes on where trl's does, with the same rows."""

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from tests.hf import tiny
from tests.hf.test_events import LOSS_TOLERANCE, vars_of

trl = pytest.importorskip("trl", reason="trl is not installed; it is the reference here")


class Sets(TrainerCallback):
    """Sets a flag of the control at a step."""

    def __init__(self, event: str, step: int, flag: str = "should_training_stop") -> None:
        self.step, self.flag = step, flag
        setattr(self, event, self._set)

    def _set(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            setattr(control, self.flag, True)


class Worsens(TrainerCallback):
    """Makes each evaluation worse than the one before, whatever was learned."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **given: Any) -> None:
        metrics["eval_loss"] = float(state.global_step)


def job(library: str, folder: Path, *, resumes: bool, callbacks: Any = (), **options: Any) -> list[dict[str, Any]]:
    """One job of a run; what was logged in all of them so far."""
    evaluation = tiny.dataset(tiny.texts(3, start=20)) if "eval_strategy" in options else None
    common: dict[str, Any] = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 1, **options}
    if library == "trl":
        own = {"gradient_checkpointing": False, "restore_callback_states_from_checkpoint": True}  # as ours always does
        trainer: Any = trl.SFTTrainer(
            tiny.make_model(),
            trl.SFTConfig(**(vars_of(tiny.config(folder)) | own | common)),
            train_dataset=tiny.dataset(),
            eval_dataset=evaluation,
            processing_class=tiny.make_tokenizer(),
            callbacks=list(callbacks),
        )
    else:
        accepted = {"accept_changes": ["max_steps"]}
        trainer = tiny.trainer(folder, callbacks=list(callbacks), eval_dataset=evaluation, **common, **accepted)
    trainer.train(resume_from_checkpoint=resumes)
    return [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]


LONGER = [{"max_steps": steps} for steps in (4, 7, 10)]
WATCHED = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss", "max_steps": 7}


def stops(event: str, *steps: int, **options: Any) -> list[dict[str, Any]]:
    """Jobs that a callback stops, and one that nothing stops."""
    return [*({"callbacks": [Sets(event, step)], **options} for step in steps), options]


@pytest.mark.parametrize(
    ("jobs", "last"),
    [
        (LONGER, 10),
        ([{**options, "save_strategy": "epoch"} for options in LONGER], 10),
        (stops("on_step_end", 2, max_steps=4), 4),
        (stops("on_step_end", 2, 5, max_steps=6, save_strategy="epoch"), 6),
        (stops("on_epoch_end", 5, num_train_epochs=2, save_strategy="epoch"), 10),
        (stops("on_substep_end", 2, max_steps=6, gradient_accumulation_steps=2, save_strategy="epoch"), 6),
    ],
    ids=[
        "4, 7, 10 steps",
        "4, 7, 10 steps, saved at epochs",
        "stopped after steps",
        "stopped within epochs that are then saved",
        "stopped at an epoch's end",
        "stopped within an accumulation",
    ],
)
def test_a_job_goes_on_where_the_one_before_was_stopped(jobs: list[dict[str, Any]], last: int, tmp_path: Path) -> None:
    logging.getLogger("sartor").addHandler(logging.NullHandler())
    for number, options in enumerate(jobs):
        theirs, ours = (
            job(library, tmp_path / library, resumes=number > 0, **options) for library in ("trl", "sartor")
        )
        assert [record["step"] for record in ours] == [record["step"] for record in theirs]
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine["loss"] == pytest.approx(reference["loss"], abs=LOSS_TOLERANCE)
            assert mine["epoch"] == pytest.approx(reference["epoch"])
    assert ours[-1]["step"] == last


def test_a_run_that_was_stopped_early_goes_on_as_trls_and_stops_again_as_trls(tmp_path: Path) -> None:
    """The count of evaluations without a gain goes on too (as trl's, where it is asked to): one more ends the job."""
    steps: dict[str, list[list[int]]] = {"trl": [], "sartor": []}
    for number in range(3):
        for library, found in steps.items():
            patience = [Worsens(), EarlyStoppingCallback(early_stopping_patience=2)]
            logs = job(library, tmp_path / library, resumes=number > 0, callbacks=patience, **WATCHED)
            found.append([record["step"] for record in logs if "loss" in record])
    assert steps["sartor"] == steps["trl"]
    assert [len(logs) for logs in steps["sartor"]] == [3, 4, 5]


def test_an_epoch_that_a_callback_ended_stays_ended_and_the_next_one_is_trained(tmp_path: Path) -> None:
    """Killed equals never killed: the wish was for the epoch, and it was obeyed before the checkpoint was written."""

    def trainer(folder: Path, *more: TrainerCallback) -> Any:
        callbacks = [Sets("on_step_end", 2, "should_epoch_stop"), *more]
        return tiny.trainer(folder, callbacks=callbacks, num_train_epochs=2, save_strategy="epoch")

    class Dies(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                raise ZeroDivisionError

    whole, killed = trainer(tmp_path / "whole"), trainer(tmp_path / "killed", Dies())
    whole.train()
    with pytest.raises(ZeroDivisionError):
        killed.train()
    resumed = trainer(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert whole.state.global_step == 7
    assert tiny.losses(resumed.state.log_history) == tiny.losses(whole.state.log_history)
