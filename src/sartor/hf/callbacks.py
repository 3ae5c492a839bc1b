"""Callbacks that report to TensorBoard, or to a file: where its disk is full, the report loses what has no room.

The run goes on.

In: a trainer's events.  Out: the same calls as transformers makes.
"""

from __future__ import annotations

import copy
import errno
from collections import Counter
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import CallbackHandler, TrainerCallback

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Callbacks(CallbackHandler):
    """transformers' handler of callbacks, for which a log that has no room is no error."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.__dict__.update(vars(trainer.callback_handler))  # each callback was added, and warned of, already
        self._trainer = trainer
        self._num_lost: Counter[str] = Counter()

    def call_event(self, event: str, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """Call one event of each callback; see transformers."""
        for callback in self.callbacks:
            alone = copy.copy(self)
            alone.callbacks = [callback]
            try:
                control = super(Callbacks, alone).call_event(event, args, state, control, **given)
            except OSError as error:
                if error.errno not in _NO_ROOM or not (event == "on_log" or _is_of_transformers(callback)):
                    raise
                self._lose(callback, error)
        if event == "on_train_end":
            for name, num_lost in self._num_lost.items():
                self._trainer.say(f"{num_lost} events of {name} were lost: its disk was full.")
            self._num_lost.clear()
        return control

    def _lose(self, callback: TrainerCallback, error: OSError) -> None:
        name = type(callback).__name__
        self._num_lost[name] += 1
        if self._num_lost[name] == 1:
            place = error.filename or vars(callback).get("logging_dir") or "what it writes to"
            self._trainer.say(
                f"{name} cannot log: {error.strerror}, on the disk of {place}. The run goes on without what it would "
                "have logged."
            )


def _is_of_transformers(callback: TrainerCallback) -> bool:
    """Whether it reports to a tracker that `report_to` names."""
    return type(callback).__module__.startswith("transformers.integrations")
