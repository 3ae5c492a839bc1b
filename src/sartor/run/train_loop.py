"""One training between its events: what was counted and measured, where it is, and what a checkpoint holds of that.

In: the events of `loop.loop`, from whoever runs it.  Out: sums for logs, checkpoints, and the place to go on from.  It
decides nothing: when to log, evaluate, save and stop is up to whoever runs the loop; `run_steps` is the plainest way.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sartor.errors import DiskFullError, RunFolderError
from sartor.records import StepResult
from sartor.run import loop, saving
from sartor.run.checkpoints import Checkpoints, Companion
from sartor.run.data_loader import TrainDataLoader
from sartor.run.evaluate import Evaluation, evaluate_dataset
from sartor.run.interrupt import Interrupts
from sartor.run.loop import Reply
from sartor.run.metrics_writer import MetricsWriter
from sartor.run.policies import rows_named
from sartor.run.session import Session
from sartor.run.spikes import Spikes
from sartor.run.state import generator_states, restore_generators
from sartor.run.stepper import Updater
from sartor.run.window import Window


class TrainLoop:
    """One training."""

    def __init__(
        self,
        session: Session,
        data_loader: TrainDataLoader,
        updater: Updater,
        metrics_writer: MetricsWriter,
        *,
        run: int,
        steps_in_epoch: int,
        max_steps: int,
        companion: Companion,
    ) -> None:
        """Args:
        session: of the run.
        data_loader: gives its optimizer batches.
        updater: steps its optimizer.
        metrics_writer: counts time and tokens, and writes logs.
        run: its number among the runs of its folder.
        steps_in_epoch: device batches of an epoch.
        max_steps: optimizer steps after which it ends.
        companion: adds to checkpoints.
        """
        self._session = session
        self.data_loader = data_loader
        self.metrics_writer = metrics_writer
        self.steps = session.steps
        self.interrupts = Interrupts()
        self.steps_in_epoch = steps_in_epoch
        self.max_steps = max_steps
        self.epoch = 0
        self.window = Window()
        self.spikes = Spikes()
        self.num_tokens = 0
        """That were trained on, padding not included."""
        self.last_logged = 0
        """The step after which the last log came."""
        self.total_loss = 0.0
        self.grad_norm: float | None = None
        self.learning_rate: float | None = None
        self.start_time = time.time()
        self.last_saved = 0
        """The step after which the last checkpoint came."""
        self.evaluated_last = False
        """Whether an evaluation came after the last step."""
        self.is_whole = True
        """Whether weights, schedule and counts agree, so that they may be saved; not so in the middle of an update, and
        after training, when the best model may have been loaded."""
        self.events: Generator[loop.Event, Reply, None] | None = None
        """To be run, by `run_steps` or by somebody else."""
        self._companion = companion
        self._cursor = data_loader.cursor(0, 0)
        self._generators = generator_states()
        """What a checkpoint of this moment holds: as they are after everything that a resumed run does not do anew."""
        self._was_resumed = False
        """And is in the first epoch since."""
        self._was_stepped = False
        updater.pause = self.interrupts.pause
        self.checkpoints = Checkpoints(session, updater, run, companion, self.place, metrics_writer.saving_waited)

    def run_steps(self) -> Iterator[loop.StepEnd]:
        """Train; gives each optimizer step when it is done, and may be saved.

        A signal that comes meanwhile waits for the end of what is being computed.

        Raises:
            KeyboardInterrupt, Terminated: a signal came.
        """
        assert self.events is not None
        with self.interrupts, closing(self.events) as events:
            self.interrupts.hold()
            event = next(events, None)
            while event is not None:
                reply = Reply.GO_ON
                match event:
                    case loop.EpochBegin(epoch):
                        self.begin_epoch(epoch)
                    case loop.StepBegin():
                        self.metrics_writer.step_begins()
                    case loop.PreOptimizerStep():
                        self.interrupts.pause()
                        self.begin_update()
                    case loop.StepEnd():
                        self.end_step(event)
                        yield event
                        if self.steps.done >= self.max_steps:
                            reply = Reply.STOP_TRAINING
                    case loop.EpochEnd(num_device_batches):
                        self.end_epoch(num_device_batches, stops=self.steps.done >= self.max_steps)
                if not isinstance(event, loop.OptimizerStepped):
                    self.interrupts.pause()
                try:
                    event = events.send(reply)
                except StopIteration:
                    break

    # --- what the events mean ------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins; at the start of a resumed one the generators are put back before anybody draws."""
        self.epoch = epoch
        if self._was_resumed and self._cursor["device_batches"] == 0:
            restore_generators(self._generators)

    def begin_update(self) -> None:
        """Parameters change from here on; until the step is counted nothing must be saved."""
        self.is_whole = False

    def end_step(self, event: loop.StepEnd) -> None:
        """Count a step.

        Raises:
            RunFolderError: a checkpoint could not be saved, and the run is to stop then.
            ConfigurationError: the optimizer's state cannot be saved.
        """
        result = event.result
        self.window.add(result)
        self._report_spike(result)
        self.evaluated_last = False
        self.grad_norm = result.grad_norm
        self.learning_rate = event.learning_rate
        self.num_tokens += result.num_tokens
        self.metrics_writer.step_ends(result.num_tokens, self.data_loader.last_flops)
        self._advance(self.epoch, event.num_device_batches)
        self.is_whole = True
        if not self._was_stepped:
            self.checkpoints.check_state()
        self.tolerate(self.checkpoints.check)
        self._was_stepped = True

    def end_epoch(self, num_device_batches: int, *, stops: bool) -> None:
        """Where the run is to stop within an epoch, a longer one goes on with the rows that are left of it."""
        self._was_resumed = False
        if stops and num_device_batches < self.steps_in_epoch:
            self._cursor = {**self._cursor, "is_over": True}
        else:
            self._advance(self.epoch + 1, 0)

    def _advance(self, epoch: int, num_device_batches: int) -> None:
        """What is saved from here on is of this moment, also when the next batch is under way."""
        self._cursor = self.data_loader.cursor(epoch, num_device_batches)
        self.keep_generators()

    def keep_generators(self) -> None:
        """A run that is resumed draws as from this moment on."""
        self._generators = generator_states()

    def restore_generators(self) -> None:
        """Put them back to what was kept last."""
        restore_generators(self._generators)

    def _report_spike(self, result: StepResult) -> None:
        """Say where a loss stands out; see `run.spikes` for the rule."""
        if result.is_skipped:
            return
        usual = self.spikes.add(result.sums.mean_loss)
        if usual is not None:
            session = self._session
            session.say(
                f"step {self.steps.done}: a loss of {result.sums.mean_loss:.3g}, where the last "
                f"ones had a mean of {usual:.3g}: {rows_named(session.data.places.get('train'), result.keys)}"
            )

    # --- logs and checkpoints ------------------------------------------------------------------------------------

    def take_logs(self) -> tuple[dict[str, float], Window]:
        """Mean loss, gradient norm and learning rate since the last log, and the window, which is over."""
        window, self.window = self.window, Window()
        num_steps = self.steps.done - self.last_logged - window.num_skipped
        logs: dict[str, float] = {"loss": window.loss / num_steps if num_steps else math.nan}
        if self.grad_norm is not None:
            logs["grad_norm"] = self.grad_norm
        if self.learning_rate is not None:
            logs["learning_rate"] = self.learning_rate
        self.total_loss += window.loss
        self.last_logged = self.steps.done
        return logs, window

    def log(self) -> dict[str, float]:
        """`take_logs` with token accuracy and entropy, also written to `metrics.jsonl`."""
        logs, window = self.take_logs()
        logs |= {**window.metrics(), "num_tokens": float(self.num_tokens)}
        self.metrics_writer.write(self.steps.done, logs)
        return logs

    def evaluate(self, dataset: Any, name: str = "eval") -> Evaluation:
        """Loss, token accuracy and entropy of a prepared data set, by the model as it is now.

        Raises:
            DataError: it has no target.
            OutOfMemoryError: one document alone does not fit.
        """
        session = self._session
        assert session.recovery is not None
        found = evaluate_dataset(session.recovery, dataset, session.settings.eval_batch_size, name=f"{name} data")
        self.evaluated_last = True
        return found

    @property
    def mean_loss(self) -> float:
        """Of all steps so far that were not skipped."""
        return (self.total_loss + self.window.loss) / max(self.steps.done - self.steps.num_skipped, 0.001)

    def save(self) -> Path | None:
        """A checkpoint of the steps that are done.

        None where there is none to save, in the middle of an update that a signal has ended; or where it does not fit
        on the disk, and the run goes on without it.
        """
        saved: list[Path] = []
        if not self.is_whole or not self.tolerate(lambda: saved.append(self.checkpoints.save())):
            return None
        self.last_saved = self.steps.done
        return saved[0]

    def tolerate(self, action: Callable[[], Any]) -> bool:
        """Whether saving went well.

        Raises:
            RunFolderError: it did not, and the user's policy is not to pass over it.
        """
        try:
            action()
        except RunFolderError as error:
            if not isinstance(error, DiskFullError) or self._session.settings.on_full_disk != "continue":
                raise
            self._session.say(f"{error} The run goes on without it (on_full_disk='continue').")
            return False
        return True

    def place(self) -> dict[str, Any]:
        """For a checkpoint: everything that a run is besides model, optimizer and schedule."""
        return {
            "steps": self.steps.state(),
            "cursor": self._cursor,
            "generators": self._generators,
            "train_loop": {
                "window": self.window.state(),
                "last_logged": self.last_logged,
                "spikes": self.spikes.state(),
                "total_loss": self.total_loss,
                "grad_norm": self.grad_norm,
                "learning_rate": self.learning_rate,
                "evaluated_last": self.evaluated_last,
                "seconds": time.time() - self.start_time,
            },
            "num_tokens": self.num_tokens,
            "metrics_writer": self.metrics_writer.state(),
            "metrics_bytes": self._metrics_bytes(),
            "control": self._companion.control(),
        }

    def _metrics_bytes(self) -> int:
        """Raises DiskFullError where lines wait for room: a run that goes on from here would never write them."""
        known = self._companion.metrics_bytes()
        if known is not None:
            return known
        num_bytes = self.metrics_writer.durable_bytes()
        if self.metrics_writer.num_waiting:
            raise DiskFullError(
                f"no space left on the disk: {self.metrics_writer.num_waiting} lines of {saving.METRICS_NAME} wait for "
                f"room, and no checkpoint can be saved without them. {saving.MAKE_ROOM}"
            )
        return num_bytes

    def resume(self, content: Mapping[str, Any]) -> tuple[int, int, dict[str, bool]]:
        """Go on from what `place` returned.

        A run that has come to its `max_steps` has ended.  Any other wish to stop was a callback's, and of that job: as
        in trl, whoever resumes it wants it to go on.

        Returns:
            The epoch to begin with, the device batches of it that are done, and what callbacks had decided.
        """
        train_loop = content["train_loop"]
        self.steps.load_state(content["steps"])
        self.window.load_state(train_loop["window"], self._session.device)
        self.spikes.load_state(**train_loop["spikes"])
        for name in ("last_logged", "total_loss", "grad_norm", "learning_rate", "evaluated_last"):
            setattr(self, name, train_loop[name])
        self.start_time = time.time() - train_loop["seconds"]
        self.last_saved = self.steps.done
        self.num_tokens = content["num_tokens"]
        self.metrics_writer.load_state(content["metrics_writer"])
        self._cursor, self._generators = dict(content["cursor"]), content["generators"]
        self._was_resumed = True
        is_over = self._cursor.pop("is_over", False) or self._cursor["device_batches"] == 0
        has_ended = self.steps.done >= self.max_steps
        control = dict(content["control"])
        if is_over or (control["should_training_stop"] and not has_ended):
            control["should_epoch_stop"] = False
        control["should_training_stop"] = has_ended
        self.data_loader.start_at(self._cursor, self._find_generators, stops=has_ended or control["should_epoch_stop"])
        if has_ended and is_over:
            self._cursor["epoch"] = sys.maxsize  # there is no next one
        return self._cursor["epoch"], self._cursor["device_batches"], control

    def _find_generators(self) -> None:
        """When a resumed run has found its place in the midst of an epoch; at the start of one see `begin_epoch`."""
        if self._cursor["device_batches"]:
            restore_generators(self._generators)

    def close(self) -> None:
        """Whatever happened: the files are closed, and what is being saved is on the disk."""
        self.metrics_writer.close()
        if self.metrics_writer.num_waiting:
            self._session.say(
                f"{self.metrics_writer.num_waiting} lines of {saving.METRICS_NAME} never had room on the disk."
            )
        self.checkpoints.settle()
