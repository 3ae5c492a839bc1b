"""From the loop's events to Trainer's callbacks, logs, evaluations and checkpoints, in Trainer's order.

In: a trainer whose run is set up, and the loop.  Out: the run's `TrainOutput`.  The loop computes; this module reacts.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils.memory import clear_device_cache
from transformers.trainer_utils import SaveStrategy, TrainOutput, speed_metrics

from sartor.errors import DiskFullError, RunFolderError
from sartor.records import StepResult
from sartor.run import loop, saving
from sartor.run.checkpoints import Checkpoints, callback_states, require_stoppable, restore_callbacks
from sartor.run.data_loader import TrainDataLoader
from sartor.run.interrupt import Interrupts
from sartor.run.loop import Reply
from sartor.run.metrics_writer import MetricsWriter
from sartor.run.policies import rows_named, summary
from sartor.run.spikes import Spikes
from sartor.run.state import generator_states, restore_generators
from sartor.run.steps import StepCounter
from sartor.run.window import Window

if TYPE_CHECKING:
    from collections.abc import Generator

    from sartor.hf.sft_trainer import SFTTrainer


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a run was before an evaluation."""

    control: dict[str, bool]
    metrics_bytes: int
    num_logs: int
    callbacks: dict[str, list[dict[str, Any]]]


class TrainLoop:
    """One `train()`."""

    def __init__(
        self,
        trainer: SFTTrainer,
        data_loader: TrainDataLoader,
        *,
        metrics_writer: MetricsWriter,
        steps: StepCounter,
        steps_in_epoch: int,
        num_train_samples: float,
        ignore_keys_for_eval: list[str] | None,
        measures_targets: bool,
    ) -> None:
        self.trainer = trainer
        self.data_loader = data_loader
        self.metrics_writer = metrics_writer
        self.steps = steps
        self.interrupts = Interrupts()
        self.steps_in_epoch = steps_in_epoch
        self.num_train_samples = num_train_samples
        self.ignore_keys = ignore_keys_for_eval
        self.measures_targets = measures_targets
        self.epoch = 0
        self.window = Window()
        self.spikes = Spikes()
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
        self.is_loop_over = False
        self.takes_best = False
        """Whether the best checkpoint's weights have replaced the last ones, or are about to."""
        self.checkpoints: Checkpoints | None = None
        """Set when there is something to save."""
        self.is_whole = True
        """Whether weights, schedule and counts agree, so that they may be saved; not so in the middle of an update, and
        after training, when the best model may have been loaded."""
        self._cursor = data_loader.cursor(0, 0)
        self._generators = generator_states()
        """What a checkpoint of this moment holds: as they are after every callback that a resumed run does not call."""
        self._mark: _Mark | None = None
        """While an evaluation is under way: what an interrupted one goes back to."""
        self._control_to_restore: dict[str, bool] | None = None
        self._was_stepped = False

    def run(self, events: Generator[loop.Event, Reply, None]) -> TrainOutput:
        """TrainLoop a run from its first event to its last log."""
        trainer = self.trainer
        with self.interrupts, closing(events):
            self.interrupts.hold()
            self._call("on_train_begin")
            if self._control_to_restore is not None:
                self._restore_control(*self._control_to_restore)
                if trainer.control.should_evaluate:  # an evaluation was interrupted
                    restore_generators(self._generators)
                    self._log_evaluate_save()
            elif trainer.args.eval_on_start:
                self._evaluate(steps_schedule=False)
            event = next(events, None)
            while event is not None:
                try:
                    event = events.send(self._react(event))
                except StopIteration:
                    break
            self.is_loop_over = True
            if trainer.args.eval_on_end and not self.evaluated_last:
                trainer.control.should_evaluate = True
                self._log_evaluate_save()
            return self._finalize_training()

    @property
    def is_trained(self) -> bool:
        """Whether the last step is done."""
        state = self.trainer.state
        return state.global_step > 0 and (self.is_loop_over or state.global_step >= state.max_steps)

    def _react(self, event: loop.Event) -> Reply:
        trainer = self.trainer
        match event:
            case loop.EpochBegin(epoch):
                self.epoch = epoch
                if self._control_to_restore is not None and self._cursor["device_batches"] == 0:
                    restore_generators(self._generators)
                self._call("on_epoch_begin")
                self._restore_control("should_training_stop", "should_epoch_stop")
                self._control_to_restore = None
            case loop.StepBegin():
                self._empty_cache()
                self.metrics_writer.step_begins()
                self._call("on_step_begin")
            case loop.SubstepEnd():
                self._call("on_substep_end")
            case loop.PreOptimizerStep():
                self._call("on_pre_optimizer_step")
                self.interrupts.pause()
                self.is_whole = False  # until the step is counted: half of one must not be saved
            case loop.OptimizerStepped():
                self._call("on_optimizer_step")
            case loop.StepEnd():
                self._step_end(event)
            case loop.EpochEnd(num_device_batches):
                if num_device_batches == 0:
                    trainer.say(
                        f"the data set gave no row in epoch {self.epoch}: training stops at step {self.steps.done}."
                    )
                    trainer.control.should_training_stop = True
                self._end_epoch(num_device_batches)
                self._call("on_epoch_end")
                self._log_evaluate_save()
        if not isinstance(event, loop.OptimizerStepped):
            self.interrupts.pause()
        return self._reply(event)

    def _reply(self, event: loop.Event) -> Reply:
        """What callbacks decided.

        Before a step's end a wish to stop the epoch or the run is not looked at, as in Trainer.
        """
        control = self.trainer.control
        if not isinstance(event, loop.SubstepEnd | loop.StepEnd | loop.EpochEnd):
            return Reply.GO_ON
        if control.should_training_stop:
            return Reply.STOP_TRAINING
        if control.should_epoch_stop and not isinstance(event, loop.EpochEnd):
            return Reply.STOP_EPOCH
        return Reply.GO_ON

    def _step_end(self, event: loop.StepEnd) -> None:
        trainer, result = self.trainer, event.result
        self.window.add(result)
        self._report_spike(result)
        self.evaluated_last = False
        self.grad_norm = result.grad_norm
        self.learning_rate = event.learning_rate
        self._count_tokens(result.num_tokens)
        trainer.current_flos += self.data_loader.last_total_flos
        self.metrics_writer.step_ends(result.num_tokens, self.data_loader.last_flops)
        self._show_step()
        trainer.state.epoch = self.epoch + event.num_device_batches / self.steps_in_epoch
        self._advance(self.epoch, event.num_device_batches)
        self.is_whole = True
        if self.checkpoints is not None:
            if not self._was_stepped:
                self.checkpoints.check_state()
            self._tolerate(self.checkpoints.check)
        self._was_stepped = True
        self._call("on_step_end")
        self._log_evaluate_save()

    def _show_step(self) -> None:
        """Callbacks see a step as done when all that belongs to it is, its schedule too."""
        self.trainer.state.global_step = self.steps.done

    def _advance(self, epoch: int, num_device_batches: int) -> None:
        """What is saved from here on is of this moment, also when the next batch is under way."""
        self._cursor = self.data_loader.cursor(epoch, num_device_batches)
        self._generators = generator_states()

    def _end_epoch(self, num_device_batches: int) -> None:
        """Where the run is to stop within an epoch, a longer one goes on with the rows that are left of it."""
        if self.trainer.control.should_training_stop and num_device_batches < self.steps_in_epoch:
            self._cursor = {**self._cursor, "is_over": True}
        else:
            self._advance(self.epoch + 1, 0)

    def _report_spike(self, result: StepResult) -> None:
        """Say where a loss stands out; see `run.spikes` for the rule."""
        if result.is_skipped:
            return
        usual = self.spikes.add(result.sums.mean_loss)
        if usual is not None:
            self.trainer.say(
                f"step {self.steps.done}: a loss of {result.sums.mean_loss:.3g}, where the last "
                f"ones had a mean of {usual:.3g}: {rows_named(self.trainer, result.keys)}"
            )

    def _count_tokens(self, num_tokens: int) -> None:
        """Count the tokens of a step, padding not included."""
        self.trainer.total_train_tokens += num_tokens
        if self.trainer.args.include_num_input_tokens_seen != "no":
            self.trainer.state.num_input_tokens_seen += num_tokens

    def _empty_cache(self) -> None:
        every = self.trainer.args.torch_empty_cache_steps
        if every is not None and self.steps.done % every == 0:
            clear_device_cache()

    def _log_evaluate_save(self) -> None:
        trainer = self.trainer
        control = trainer.control
        if control.should_log and self.steps.done > self.last_logged:
            self._log()
        self._generators = generator_states()
        if control.should_evaluate:
            metrics = self._evaluate()
            is_best = trainer._determine_best_metric(metrics=metrics, trial=None)
            if trainer.args.save_strategy == SaveStrategy.BEST:
                trainer.control.should_save = is_best
            self._generators = generator_states()
        if trainer.control.should_save:
            self.save()
            restore_generators(self._generators)  # a run that goes on from here does not see what saving drew

    def save(self) -> None:
        """A checkpoint, and the event for it; the run may go on without one that does not fit on the disk."""
        if self._tolerate(lambda: self.trainer._save_checkpoint(self.trainer.model, None)):
            self.last_saved = self.steps.done
            self._call("on_save")
        self.trainer.control.should_save = False

    def _tolerate(self, action: Callable[[], Any]) -> bool:
        """Whether saving went well; what the user's policy does not pass over is raised."""
        try:
            action()
        except RunFolderError as error:
            require_stoppable(error, self.trainer)
            return False
        return True

    def state(self) -> dict[str, Any]:
        """For a checkpoint: everything that a run is besides model, optimizer and schedule."""
        mark = self._mark
        control = mark.control if mark is not None else {**self._control(), "should_save": False}
        return {
            "steps": self.steps.state(),
            "cursor": self._cursor,
            "generators": self._generators,
            "control": control,
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
            "num_tokens": self.trainer.total_train_tokens,
            "metrics_writer": self.metrics_writer.state(),
            "metrics_bytes": mark.metrics_bytes if mark is not None else self._metrics_bytes(),
        }

    def _metrics_bytes(self) -> int:
        """Raises DiskFullError where lines wait for room: a run that goes on from here would never write them."""
        num_bytes = self.metrics_writer.durable_bytes()
        if self.metrics_writer.num_waiting:
            raise DiskFullError(
                f"no space left on the disk: {self.metrics_writer.num_waiting} lines of {saving.METRICS_NAME} wait for "
                f"room, and no checkpoint can be saved without them. {saving.MAKE_ROOM}"
            )
        return num_bytes

    def resume(self, content: Mapping[str, Any]) -> tuple[int, int]:
        """Go on from what `state` returned: (epoch to begin with, device batches of it that are done).

        A run that has come to its `max_steps` has ended.  Any other wish to stop was a callback's, and of that job: as
        in trl, whoever resumes it wants it to go on.
        """
        trainer, train_loop = self.trainer, content["train_loop"]
        self.steps.load_state(content["steps"])
        self._show_step()
        self.window.load_state(train_loop["window"], trainer.args.device)
        self.spikes.load_state(**train_loop["spikes"])
        for name in ("last_logged", "total_loss", "grad_norm", "learning_rate", "evaluated_last"):
            setattr(self, name, train_loop[name])
        self.start_time = time.time() - train_loop["seconds"]
        self.last_saved = self.steps.done
        trainer.total_train_tokens = content["num_tokens"]
        self.metrics_writer.load_state(content["metrics_writer"])
        self._cursor, self._generators = dict(content["cursor"]), content["generators"]
        is_over = self._cursor.pop("is_over", False) or self._cursor["device_batches"] == 0
        has_ended = self.steps.done >= trainer.state.max_steps
        control = dict(content["control"])
        if is_over or (control["should_training_stop"] and not has_ended):
            control["should_epoch_stop"] = False
        control["should_training_stop"] = has_ended
        self._control_to_restore = control
        stops = has_ended or control["should_epoch_stop"]
        self.data_loader.start_at(self._cursor, self._find_generators, stops=stops)
        if has_ended and is_over:
            self._cursor["epoch"] = sys.maxsize  # there is no next one
        return self._cursor["epoch"], self._cursor["device_batches"]

    def _find_generators(self) -> None:
        """When a resumed run has found its place in the midst of an epoch; at the start of one they are back before
        `on_epoch_begin`, which draws as it would have drawn.
        """
        if self._cursor["device_batches"]:
            restore_generators(self._generators)

    def _restore_control(self, *names: str) -> None:
        """Put back what callbacks had decided: handlers forget it when training, and an epoch, begins."""
        if self._control_to_restore is not None:
            for name in names:
                setattr(self.trainer.control, name, self._control_to_restore[name])

    def _control(self) -> dict[str, bool]:
        state: dict[str, bool] = dict(self.trainer.control.state()["args"])
        return state

    def _log(self) -> None:
        trainer = self.trainer
        num_steps = self.steps.done - self.last_logged - self.window.num_skipped
        logs: dict[str, float] = {"loss": self.window.loss / num_steps if num_steps else math.nan}
        if self.grad_norm is not None:
            logs["grad_norm"] = self.grad_norm
        if self.learning_rate is not None:
            logs["learning_rate"] = self.learning_rate
        self.total_loss += self.window.loss
        self.last_logged = self.steps.done
        trainer.store_flos()
        trainer.pending_metrics = self._pending()
        self.window = Window()
        trainer.log(logs, self.start_time)

    def _pending(self) -> dict[str, float]:
        """What `log` adds to the user-visible keys, in trl's order."""
        if self.window.sums is None:
            return {}
        metrics = self.window.metrics() if self.measures_targets else {}
        return {**metrics, "num_tokens": float(self.trainer.total_train_tokens)}

    def _evaluate(self, *, steps_schedule: bool = True) -> dict[str, float]:
        trainer = self.trainer
        self._mark = _Mark(
            self._control(),
            self.metrics_writer.durable_bytes(),
            len(trainer.state.log_history),
            callback_states(trainer),
        )
        try:
            metrics: dict[str, float] = trainer._evaluate(None, self.ignore_keys, skip_scheduler=not steps_schedule)
        except BaseException:  # whatever ended it: it is done anew when the run goes on
            del trainer.state.log_history[self._mark.num_logs :]
            restore_callbacks(trainer, self._mark.callbacks)
            raise
        self._mark = None
        self.evaluated_last = True
        return metrics

    def _finalize_training(self) -> TrainOutput:
        """The last log, and what comes after it; transformers' memory tracker knows its callers by their names."""
        trainer = self.trainer
        state = trainer.state
        self.is_whole = False
        if self.checkpoints is not None:
            self._tolerate(self.checkpoints.wait)
            self.checkpoints.tell()
        self.total_loss += self.window.loss
        train_loss = self.total_loss / max(self.steps.done - self.steps.num_skipped, 0.001)
        metrics = speed_metrics(
            "train",
            self.start_time,
            num_samples=self.num_train_samples * self.steps.done / max(state.max_steps, 1),
            num_steps=self.steps.done,
        )
        trainer.store_flos()
        metrics["total_flos"] = state.total_flos
        metrics["train_loss"] = train_loss
        metrics.update(summary(trainer, num_skipped=self.steps.num_skipped, num_spikes=self.spikes.count))
        trainer._memory_tracker.stop_and_update_metrics(metrics)
        # of steps that were not logged; as in trl they are left out where an evaluation came last
        trainer.pending_metrics = {} if self.evaluated_last else self._pending()
        trainer.log(metrics)
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.takes_best = True
            trainer._load_best_model()
        saving.drop_all_but_best(trainer)
        self._call("on_train_end")
        self.interrupts.release()
        trainer._finish_current_push()
        return TrainOutput(self.steps.done, train_loss, metrics)

    def _call(self, event: str) -> None:
        trainer = self.trainer
        handler = getattr(trainer.callback_handler, event)
        trainer.control = handler(trainer.args, trainer.state, trainer.control)
