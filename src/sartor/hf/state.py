"""What transformers keeps of a run, and how a checkpoint holds it: `TrainerState`, the control, and callbacks.

In: a trainer.  Out: `trainer_state.json` in checkpoints, looked at before it is trusted, and put back.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerState

from sartor.hf.base import SessionTrainer
from sartor.run import checked_state, checkpoint, plain_files, saving
from sartor.run.checkpoints import Companion
from sartor.run.resume import unfit

_BETWEEN_STEPS = (
    "on_epoch_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_epoch_end", "on_evaluate",
    "on_prediction_step",
)  # fmt: skip
"""Events after a save and before the next optimizer step."""


class TrainersCompanion(Companion):
    """Adds to checkpoints what transformers keeps of a run."""

    def __init__(self, trainer: SessionTrainer) -> None:
        self._trainer = trainer
        self.save_model = trainer.own_saving()
        self.mark: Mark | None = None
        """While an evaluation is under way: what an interrupted one goes back to."""

    def may_change(self) -> bool:
        """Whether a callback of the user's own is called before the next optimizer step: it may change weights."""
        return any(
            not type(callback).__module__.startswith(("transformers.", "sartor."))
            and any(_overrides(callback, event) for event in _BETWEEN_STEPS)
            for callback in self._trainer.callback_handler.callbacks
        )

    def needs_it_whole(self) -> bool:
        """Whether it is pushed, or a callback reacts to it: then it must be there when it is called."""
        callbacks = self._trainer.callback_handler.callbacks
        return self._trainer.args.push_to_hub or any(_overrides(callback, "on_save") for callback in callbacks)

    def write(self, partial: Path, target: Path) -> Callable[[], None]:
        """Write `trainer_state.json`; it points to this run's checkpoint of the best metric, perhaps this very one."""
        trainer, state = self._trainer, self._trainer.state
        best_before = state.best_model_checkpoint

        def take_back() -> None:
            state.best_model_checkpoint = best_before

        if state.best_global_step:
            best = target.with_name(f"{checkpoint.PREFIX}{state.best_global_step}")
            is_ours = trainer.train_loop is not None and checkpoint.run_of(best) == trainer.train_loop.checkpoints.run
            if best == target or is_ours:
                state.best_model_checkpoint = os.fspath(best)
        for name, states in callback_states(trainer).items():
            state.stateful_callbacks[name] = states if len(states) > 1 else states[0]
        try:
            state.save_to_json(str(partial / saving.STATE_NAME))
        except BaseException:
            take_back()
            raise
        return take_back

    def best(self) -> Path | None:
        """See `Companion`."""
        best = self._trainer.state.best_model_checkpoint
        return Path(best) if best else None

    def control(self) -> dict[str, bool]:
        """See `Companion`."""
        return self.mark.control if self.mark is not None else {**control_of(self._trainer), "should_save": False}

    def metrics_bytes(self) -> int | None:
        """See `Companion`."""
        return None if self.mark is None else self.mark.metrics_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """Where a run was before an evaluation."""

    control: dict[str, bool]
    metrics_bytes: int
    num_logs: int
    callbacks: dict[str, list[dict[str, Any]]]


def control_of(trainer: SessionTrainer) -> dict[str, bool]:
    """What callbacks have decided."""
    state: dict[str, bool] = dict(trainer.control.state()["args"])
    return state


def read_trainer_state(path: Path, num_steps: int) -> TrainerState:
    """What `trainer_state.json` of a checkpoint holds.

    Raises:
        DamagedError: it cannot be read, or be what transformers wrote.
    """
    try:
        content = plain_files.read_object(path / saving.STATE_NAME, plain_files.HISTORY_BYTES)
    except FileNotFoundError:
        raise checkpoint.DamagedError(f"{saving.STATE_NAME} is missing") from None
    known = [field.name for field in dataclasses.fields(TrainerState)]
    with checkpoint.named(saving.STATE_NAME):
        checked_state.check_trainer_state(content, known, num_steps)
    return TrainerState(**content)


def restore_state(trainer: SessionTrainer, saved: TrainerState, folder: Path) -> None:
    """What `trainer.state` remembers, but for the steps, and the states of callbacks.

    Args:
        trainer: with a new state.
        saved: the state in the checkpoint.
        folder: of the checkpoint.
    """
    state = trainer.state
    for name in ("epoch", "num_input_tokens_seen", "total_flos", "log_history", "best_metric"):
        setattr(state, name, getattr(saved, name))
    state.best_global_step = saved.best_global_step
    if saved.best_model_checkpoint is not None:
        name = f"{checkpoint.PREFIX}{saved.best_global_step}"
        places = [Path(trainer.args.output_dir) / name, folder.parent / name]  # the folder may have moved
        run = checkpoint.run_of(folder)
        ours = (os.fspath(path) for path in places if path.exists() and checkpoint.run_of(path) == run)
        state.best_model_checkpoint = next(ours, None)
        if state.best_model_checkpoint is None:
            trainer.say(f"{name}, of the best metric so far, is no longer there: it cannot be loaded at the end.")
    with unfit(folder), checkpoint.named(saving.STATE_NAME):
        check_callbacks(trainer, saved.stateful_callbacks)
    restore_callbacks(trainer, saved.stateful_callbacks)
    trainer.current_flos = 0


def _overrides(callback: TrainerCallback, event: str) -> bool:
    return event in vars(callback) or getattr(type(callback), event) is not getattr(TrainerCallback, event)


def callback_states(trainer: SessionTrainer) -> dict[str, list[dict[str, Any]]]:
    """The states of callbacks that have one, and of the control, by the names of their classes, in order."""
    states: dict[str, list[dict[str, Any]]] = {}
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    return states


def check_callbacks(trainer: SessionTrainer, states: Mapping[str, Any]) -> None:
    """See that callbacks have the attributes that they would be given, and that these are of their kind.

    Raises:
        DamagedError: one has not; names it.
    """
    for name, present in callback_states(trainer).items():
        part = states.get(name, [])
        for number, (found, own) in enumerate(zip(part if isinstance(part, list) else [part], present, strict=False)):
            for key, value in found.get("attributes", {}).items():
                place = f"/stateful_callbacks/{name}/{number}/{key}"
                if key not in own.get("attributes", {}):
                    raise checkpoint.DamagedError(f"{place} is nothing that this callback has")
                if isinstance(own["attributes"][key], bool | int | float):
                    checked_state.like(value, own["attributes"][key], place)


def restore_callbacks(trainer: SessionTrainer, states: Mapping[str, Any]) -> None:
    """Give callbacks the attributes that `callback_states` saw, those of one class in their order."""
    turns = {name: iter(part if isinstance(part, list) else [part]) for name, part in states.items()}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            found: Mapping[str, Any] = next(turns.get(type(callback).__name__, iter(())), {})
            for name, value in found.get("attributes", {}).items():
                setattr(callback, name, value)
