"""Live progress of a training run: a bar where standard error is a terminal, one plain line per log where it is not.

What comes in: the trainer's events and logs.  What goes out: text on standard error.  Nothing is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from sartor.device import peak_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from transformers import TrainerControl, TrainerState, TrainingArguments


class TrainingProgress(TrainerCallback):
    """Shows step, epoch, loss, tokens per second, memory and the time left.

    Args:
        stream: where to write; standard error unless given.
        live: a bar (True) or plain lines (False); None decides by whether `stream` is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() if live is None else live
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first_step = 0
        self._started = time.perf_counter()
        self._clock = _TokenClock()

    @contextmanager
    def alone_in(self, trainer: Any) -> Iterator[None]:
        """Within the block a trainer shows this alone, not the bar or the printed dicts that transformers adds.

        Args:
            trainer: one that has this among its callbacks; what is taken out of it stays out.
        """
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was; safe to call again, and after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar."""
        self._first_step = state.global_step
        self._started = time.perf_counter()
        self._clock = _TokenClock(num_tokens=None if state.global_step else 0.0)
        if not self._live:
            return
        self._bar = _bar(self._stream)
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, figures="", left="")
        self._bar.start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock: what happens between steps (evaluation, saving) is not training."""
        self._clock.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        self._clock.stop()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=state.global_step, total=state.max_steps, left=duration(self._left_s(state))
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show what was logged."""
        if not logs or not {"loss", "eval_loss"} & set(logs):
            return
        is_training = "loss" in logs
        measured = self._clock.measured(logs) if is_training else {}
        figures = describe({**measured, **logs})
        if self._bar is not None and self._task is not None:
            if is_training:
                self._bar.update(self._task, figures=figures)
            else:
                self._bar.console.print(f"step {state.global_step}  {figures}", highlight=False, markup=False)
            return
        left = f"  {duration(self._left_s(state))} left" if is_training and state.global_step < state.max_steps else ""
        print(f"step {state.global_step}/{state.max_steps}  {figures}{left}", file=self._stream, flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the bar."""
        self.close()

    def _left_s(self, state: TrainerState) -> float | None:
        """Seconds until the last step, at the mean rate so far; None before the first one."""
        done = state.global_step - self._first_step
        if done <= 0:
            return None
        return (time.perf_counter() - self._started) / done * (state.max_steps - state.global_step)


class _TokenClock:
    """Tokens per second between logs, over the time spent inside steps."""

    def __init__(self, num_tokens: float | None = 0.0) -> None:
        """`num_tokens`: until now; None: not known, as where a run is gone on with: the first interval has no rate."""
        self._seconds = 0.0
        self._begun: float | None = None
        self._num_tokens = num_tokens

    def start(self) -> None:
        self._begun = time.perf_counter()

    def stop(self) -> None:
        if self._begun is not None:
            self._seconds += time.perf_counter() - self._begun
        self._begun = None

    def measured(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """What can be measured from outside, under the names the log would have; starts the next interval."""
        result: dict[str, float] = {"peak_memory_bytes": peak_bytes()}
        num_tokens = logs.get("num_tokens")
        if isinstance(num_tokens, int | float):
            if self._num_tokens is not None and self._seconds > 0:
                result["tokens_per_second"] = (num_tokens - self._num_tokens) / self._seconds
            self._num_tokens = num_tokens
        self._seconds = 0.0
        return result


def describe(logs: Mapping[str, Any]) -> str:
    """One line of the figures that people look at; `logs` is what the trainer logged.

    >>> describe({"epoch": 0.5, "loss": 2.0, "tokens_per_second": 412.3})
    'epoch 0.50  loss 2.0000  412 tokens/s'
    """
    prefix = "eval_" if "eval_loss" in logs else ""
    parts = []
    for key, text in (
        ("epoch", "epoch {:.2f}"),
        (f"{prefix}loss", f"{'evaluation ' if prefix else ''}loss {{:.4f}}"),
        (f"{prefix}mean_token_accuracy", "accuracy {:.1%}"),
        ("grad_norm", "grad norm {:.2f}"),
        ("learning_rate", "lr {:.1e}"),
        ("tokens_per_second", "{:.0f} tokens/s"),
    ):
        value = logs.get(key)
        if value is not None:
            parts.append(text.format(float(value)))
    memory = logs.get("peak_memory_bytes")
    if memory:
        parts.append(f"{float(memory) / 1e9:.1f} GB")
    return "  ".join(parts)


def duration(seconds: float | None) -> str:
    """`75.0` to `1:15`, `3700.0` to `1:01:40`; None to `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream),
        # Twice a second is enough for people, and leaves the cores to the training.
        refresh_per_second=2,
    )
