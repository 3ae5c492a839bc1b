"""Calling callbacks, and the callback that asks `sample_prompts`.

In: a trainer's events.  Out: the same calls as transformers makes; where a callback reports to a file whose disk is
full, the report loses what has no room, and the run goes on.
"""

from __future__ import annotations

import copy
import errno
from collections import Counter
from typing import Any

from transformers.trainer_callback import CallbackHandler, TrainerCallback

from sartor.hf.base import SessionTrainer
from sartor.run.sampling import SampleAnswers, first_and_last

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Callbacks(CallbackHandler):
    """transformers' handler of callbacks, for which a log that has no room is no error."""

    def __init__(self, trainer: SessionTrainer) -> None:
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


class AskWhileTraining(TrainerCallback):
    """Asks before the first step, at each evaluation or every `sample_steps`, and after the last step."""

    def __init__(self, trainer: SessionTrainer, answers: SampleAnswers, every: int | None) -> None:
        self._trainer = trainer
        self._answers = answers
        self._every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on with the table of the run that is resumed, or begin one."""
        self._answers.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every `sample_steps`."""
        if self._every is not None and state.global_step % self._every == 0:
            self._answers.ask(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the evaluation's figures, unless `sample_steps` says when."""
        if self._every is None and self._trainer.is_in_train and not self._answers.is_asked(state.global_step):
            self._answers.ask(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The model that training ends with, which may be the best one, not the last."""
        if not self._answers.is_asked(state.global_step) or args.load_best_model_at_end:
            self._answers.ask(state.global_step)
        told = first_and_last(self._answers.samples)
        self._trainer.say(f"answers to sample_prompts, the first and the last:\n{told}")
