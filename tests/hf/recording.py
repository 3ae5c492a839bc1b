"""A callback that writes down everything it is told, to compare two libraries by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

EVENTS = [
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_substep_end",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
]
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")

OURS = "_perplexity"
"""End of a key that trl's evaluations lack (docs/hf.md names it)."""

Steer = Callable[[str, Any, Any], None]
"""Called with the event's name, the state and the control, which it may change."""


def shared(content: Iterable[str]) -> list[str]:
    """The keys that trl has too, in order."""
    return [key for key in content if not key.endswith(OURS)]


@dataclass
class Told:
    """What a callback was told in one event."""

    event: str
    step: int
    epoch: float | None
    flags: tuple[bool, ...]
    keys: tuple[str, ...]
    """Of the logs, or of an evaluation's metrics, in order; but for `OURS`."""


@dataclass
class Recorder(TrainerCallback):
    """Records, and may steer."""

    steer: Steer | None = None
    told: list[Told] = field(default_factory=list)
    given: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Event to the names of the objects it was given, and whether they were there."""
    logs: list[dict[str, float]] = field(default_factory=list)


def _hears(event: str) -> Callable[..., Any]:
    def hear(self: Recorder, args: Any, state: Any, control: Any, **given: Any) -> Any:
        content = given.get("logs", given.get("metrics")) or {}
        epoch = None if state.epoch is None else round(state.epoch, 6)
        flags = tuple(bool(getattr(control, flag)) for flag in FLAGS)
        self.told.append(Told(event, state.global_step, epoch, flags, tuple(shared(content))))
        self.given[event] = {name: value is not None for name, value in given.items()}
        if event == "on_log":
            self.logs.append(dict(content))
        if self.steer is not None:
            self.steer(event, state, control)
        return control

    return hear


for _event in EVENTS:
    setattr(Recorder, _event, _hears(_event))
