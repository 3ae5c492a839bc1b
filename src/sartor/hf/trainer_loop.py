"""From the loop's events to Trainer's callbacks, logs, evaluations and checkpoints, in Trainer's order.

In: a trainer whose run is set up, and the loop.  Out: the run's `TrainOutput`.  The loop computes; this module reacts.
"""

from __future__ import annotations

from contextlib import closing

from accelerate.utils.memory import clear_device_cache
from transformers.trainer_utils import SaveStrategy, TrainOutput, speed_metrics

from sartor.hf.base import SessionTrainer
from sartor.hf.state import Mark, TrainersCompanion, callback_states, control_of, restore_callbacks
from sartor.run import loop, saving
from sartor.run.loop import Reply
from sartor.run.policies import summary
from sartor.run.train_loop import TrainLoop
from sartor.run.window import Window


class TrainerLoop:
    """One `train()`."""

    def __init__(
        self,
        trainer: SessionTrainer,
        run_loop: TrainLoop,
        companion: TrainersCompanion,
        *,
        num_train_samples: float,
        ignore_keys: list[str] | None,
        decided: dict[str, bool] | None,
    ) -> None:
        """Args:
        trainer: whose callbacks are called.
        run_loop: computes, counts and saves.
        companion: adds what transformers knows to checkpoints.
        num_train_samples: of the whole training, for its speed.
        ignore_keys: outputs of the model that `compute_metrics` does not get.
        decided: what callbacks had decided in the run that is gone on with.
        """
        self.trainer = trainer
        self.run_loop = run_loop
        self.steps = run_loop.steps
        self.companion = companion
        self.num_train_samples = num_train_samples
        self.ignore_keys = ignore_keys
        self.is_loop_over = False
        self.takes_best = False
        """Whether the best checkpoint's weights have replaced the last ones, or are about to."""
        self._decided = decided
        if decided is not None:
            self._show_step()
            trainer.total_train_tokens = run_loop.num_tokens

    def run(self) -> TrainOutput:
        """Run a training from its first event to its last log."""
        trainer, run_loop = self.trainer, self.run_loop
        assert run_loop.events is not None
        with run_loop.interrupts, closing(run_loop.events) as events:
            run_loop.interrupts.hold()
            self._call("on_train_begin")
            if self._decided is not None:
                self._restore_control(*self._decided)
                if trainer.control.should_evaluate:  # an evaluation was interrupted
                    run_loop.restore_generators()
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
            if trainer.args.eval_on_end and not run_loop.evaluated_last:
                trainer.control.should_evaluate = True
                self._log_evaluate_save()
            return self._finalize_training()

    @property
    def is_trained(self) -> bool:
        """Whether the last step is done."""
        state = self.trainer.state
        return state.global_step > 0 and (self.is_loop_over or state.global_step >= state.max_steps)

    def _react(self, event: loop.Event) -> Reply:
        trainer, run_loop = self.trainer, self.run_loop
        match event:
            case loop.EpochBegin(epoch):
                run_loop.begin_epoch(epoch)
                self._call("on_epoch_begin")
                self._restore_control("should_training_stop", "should_epoch_stop")
                self._decided = None
            case loop.StepBegin():
                self._empty_cache()
                run_loop.metrics_writer.step_begins()
                self._call("on_step_begin")
            case loop.SubstepEnd():
                self._call("on_substep_end")
            case loop.PreOptimizerStep():
                self._call("on_pre_optimizer_step")
                run_loop.interrupts.pause()
                run_loop.begin_update()
            case loop.OptimizerStepped():
                self._call("on_optimizer_step")
            case loop.StepEnd():
                self._step_end(event)
            case loop.EpochEnd(num_device_batches):
                if num_device_batches == 0:
                    trainer.say(
                        f"the data set gave no row in epoch {run_loop.epoch}: training stops at step {self.steps.done}."
                    )
                    trainer.control.should_training_stop = True
                run_loop.end_epoch(num_device_batches, stops=trainer.control.should_training_stop)
                self._call("on_epoch_end")
                self._log_evaluate_save()
        if not isinstance(event, loop.OptimizerStepped):
            run_loop.interrupts.pause()
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
        trainer, run_loop = self.trainer, self.run_loop
        self._show_step()
        trainer.state.epoch = run_loop.epoch + event.num_device_batches / run_loop.steps_in_epoch
        trainer.current_flos += run_loop.data_loader.last_total_flos
        if trainer.args.include_num_input_tokens_seen != "no":
            trainer.state.num_input_tokens_seen += event.result.num_tokens
        run_loop.end_step(event)
        trainer.total_train_tokens = run_loop.num_tokens
        self._call("on_step_end")
        self._log_evaluate_save()

    def _show_step(self) -> None:
        """Callbacks see a step as done when all that belongs to it is, its schedule too."""
        self.trainer.state.global_step = self.steps.done

    def _empty_cache(self) -> None:
        every = self.trainer.args.torch_empty_cache_steps
        if every is not None and self.steps.done % every == 0:
            clear_device_cache()

    def _log_evaluate_save(self) -> None:
        trainer, run_loop = self.trainer, self.run_loop
        control = trainer.control
        if control.should_log and self.steps.done > run_loop.last_logged:
            self._log()
        run_loop.keep_generators()
        if control.should_evaluate:
            metrics = self._evaluate()
            is_best = trainer._determine_best_metric(metrics=metrics, trial=None)
            if trainer.args.save_strategy == SaveStrategy.BEST:
                trainer.control.should_save = is_best
            run_loop.keep_generators()
        if trainer.control.should_save:
            self.save()
            run_loop.restore_generators()  # a run that goes on from here does not see what saving drew

    def save(self) -> None:
        """A checkpoint, and the event for it; the run may go on without one that does not fit on the disk."""
        trainer = self.trainer
        if self.run_loop.tolerate(lambda: trainer._save_checkpoint(trainer.model, None)):
            self.run_loop.last_saved = self.steps.done
            self._call("on_save")
        trainer.control.should_save = False

    def _restore_control(self, *names: str) -> None:
        """Put back what callbacks had decided: handlers forget it when training, and an epoch, begins."""
        if self._decided is not None:
            for name in names:
                setattr(self.trainer.control, name, self._decided[name])

    def _log(self) -> None:
        logs, window = self.run_loop.take_logs()
        self.trainer.store_flos()
        self.trainer.pending_metrics = self._pending(window)
        self.trainer.log(logs, self.run_loop.start_time)

    def _pending(self, window: Window) -> dict[str, float]:
        """What `log` adds to the user-visible keys, in trl's order."""
        if window.sums is None:
            return {}
        metrics = {} if self.trainer.uses_padded_batches else window.metrics()
        return {**metrics, "num_tokens": float(self.trainer.total_train_tokens)}

    def _evaluate(self, *, steps_schedule: bool = True) -> dict[str, float]:
        trainer, companion = self.trainer, self.companion
        companion.mark = mark = Mark(
            control_of(trainer),
            self.run_loop.metrics_writer.durable_bytes(),
            len(trainer.state.log_history),
            callback_states(trainer),
        )
        try:
            metrics: dict[str, float] = trainer._evaluate(None, self.ignore_keys, skip_scheduler=not steps_schedule)
        except BaseException:  # whatever ended it: it is done anew when the run goes on
            del trainer.state.log_history[mark.num_logs :]
            restore_callbacks(trainer, mark.callbacks)
            raise
        companion.mark = None
        self.run_loop.evaluated_last = True
        return metrics

    def _finalize_training(self) -> TrainOutput:
        """The last log, and what comes after it; transformers' memory tracker knows its callers by their names."""
        trainer, run_loop = self.trainer, self.run_loop
        state = trainer.state
        run_loop.is_whole = False
        run_loop.tolerate(run_loop.checkpoints.wait)
        run_loop.checkpoints.tell()
        train_loss = run_loop.mean_loss
        metrics = speed_metrics(
            "train",
            run_loop.start_time,
            num_samples=self.num_train_samples * self.steps.done / max(state.max_steps, 1),
            num_steps=self.steps.done,
        )
        trainer.store_flos()
        metrics["total_flos"] = state.total_flos
        metrics["train_loss"] = train_loss
        num_skipped, num_spikes = self.steps.num_skipped, run_loop.spikes.count
        metrics.update(summary(trainer.plan, trainer.say, num_skipped=num_skipped, num_spikes=num_spikes))
        trainer._memory_tracker.stop_and_update_metrics(metrics)
        # of steps that were not logged; as in trl they are left out where an evaluation came last
        trainer.pending_metrics = {} if run_loop.evaluated_last else self._pending(run_loop.window)
        trainer.log(metrics)
        best = state.best_model_checkpoint
        if trainer.args.load_best_model_at_end and best is not None:
            self.takes_best = True
            trainer._load_best_model()
        if best is not None and trainer.args.save_total_limit == 1:
            saving.drop_all_but(best, trainer.session.folder, trainer.say)
        self._call("on_train_end")
        run_loop.interrupts.release()
        trainer._finish_current_push()
        return TrainOutput(self.steps.done, train_loss, metrics)

    def _call(self, event: str) -> None:
        trainer = self.trainer
        handler = getattr(trainer.callback_handler, event)
        trainer.control = handler(trainer.args, trainer.state, trainer.control)
