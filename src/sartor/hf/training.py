"""`train()`: state, optimizer, schedule and loop of a run, in the order in which transformers' Trainer makes them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput, align_special_tokens

from sartor.config import resolved_configuration
from sartor.device import kind_of
from sartor.engine.step import Engine
from sartor.errors import NonFiniteError, OutOfMemoryError
from sartor.hf import hub
from sartor.hf.evaluating import lazy_loader
from sartor.hf.padded import PaddedStepper
from sartor.hf.train_loop import TrainLoop
from sartor.memory.allocator import retaining
from sartor.optim.implementation import set_implementation
from sartor.run import checkpoint, folder_lock, loop, rescue, saving
from sartor.run import resume as resuming
from sartor.run.checkpoints import Checkpoints, interrupted_save
from sartor.run.data_loader import TrainDataLoader
from sartor.run.interrupt import Terminated
from sartor.run.metrics_writer import MetricsWriter
from sartor.run.output import lines_may_be_lost
from sartor.run.policies import full_disk_policy, last_checkpoint, non_finite_policy
from sartor.run.rehearsal import rehearse_run
from sartor.run.resume import Resumption
from sartor.run.setup import announce, count_streams, engine_for, matrix_rate
from sartor.run.stepper import EngineStepper, Updater

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer

_NONE_SAVED = "No checkpoint was saved before it."


def train(
    trainer: SFTTrainer, ignore_keys: list[str] | None, resume: str | bool | os.PathLike[str] | None = None
) -> TrainOutput:
    """Run a training from its first step, or from a checkpoint, to its last log; see `SFTTrainer.train`.

    Nothing in its folder is touched before it is this run's alone; and what is printed may be lost, the run may not.
    """
    with ExitStack() as stack:
        stack.enter_context(lines_may_be_lost())
        with saving.explained(trainer.args.output_dir):
            os.makedirs(trainer.args.output_dir, exist_ok=True)
            stack.enter_context(folder_lock.held(trainer.args.output_dir))
        trainer._memory_tracker.start()  # which knows its callers by their names
        return _train(trainer, ignore_keys, resume)


def _train(
    trainer: SFTTrainer, ignore_keys: list[str] | None, resume: str | bool | os.PathLike[str] | None
) -> TrainOutput:
    resumption = resuming.find(trainer, resume)
    align_special_tokens(trainer.model, trainer.processing_class)
    rescue.check_savable(trainer)
    data_loader = TrainDataLoader(trainer)
    trainer.figures = ()
    with ExitStack() as stack:
        stack.callback(_end, trainer)
        trainer.is_in_train = True
        stack.enter_context(retaining(wanted=kind_of(trainer.args.device).is_host))
        plan = None if resumption is None else resumption.plan
        if plan is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            resuming.keep_threads(trainer, plan)
        engine = stack.enter_context(
            engine_for(
                trainer, longest_tokens=data_loader.longest_document, trains=True, frozen=plan, data_loader=data_loader
            )
        )
        trainer.plan = engine.plan
        data_loader.traits = engine.traits
        train_loop, events = _start(trainer, engine, data_loader, ignore_keys, resumption)
        came_from = None if resumption is None else resumption.folder
        try:
            result = train_loop.run(events)
            count_streams(trainer)
            return result
        except NonFiniteError as error:
            folder = last_checkpoint(trainer, came_from)
            where = f"The last good checkpoint is {folder}: every loss before it was finite." if folder else _NONE_SAVED
            raise NonFiniteError(f"{error} {where}") from error
        except OutOfMemoryError as error:
            _save_interrupted(trainer, train_loop, "memory ran out")
            folder = last_checkpoint(trainer, came_from)
            where = f"The run can go on from {folder}, where there is more memory." if folder else _NONE_SAVED
            _keep_weights(trainer, train_loop, error)
            raise OutOfMemoryError(f"{error} {where}") from error
        except (KeyboardInterrupt, Terminated):
            hub.give_up_pushes(trainer)
            if train_loop.checkpoints is not None:
                train_loop.checkpoints.pushes = False  # the program would wait for it
            _save_interrupted(trainer, train_loop, "interrupted")
            count_streams(trainer)
            raise
        except BaseException as error:
            _keep_weights(trainer, train_loop, error)
            raise


def _start(
    trainer: SFTTrainer,
    engine: Engine,
    data_loader: TrainDataLoader,
    ignore_keys: list[str] | None,
    resumption: Resumption | None,
) -> tuple[TrainLoop, Generator[loop.Event, loop.Reply, None]]:
    args = trainer.args
    loader = lazy_loader(
        trainer.train_dataset, trainer._train_batch_size, trainer.data_collator, drop_last=args.dataloader_drop_last
    )
    num_train_epochs, _, _, num_train_samples, _, steps_in_epoch, max_steps = trainer.set_initial_training_values(
        args, loader
    )
    fresh_state(trainer, max_steps, num_train_epochs)
    if trainer._created_lr_scheduler:  # in an earlier train(): one that was passed in stays
        trainer.lr_scheduler = None
        trainer._created_lr_scheduler = False
    trainer.create_optimizer()
    set_implementation(trainer.optimizer, engine.plan.optimizer_implementation)
    trainer.create_scheduler(num_training_steps=max_steps)
    if resumption is not None:
        resuming.restore_weights(trainer, resumption)
        resuming.restore_optimizer(trainer, resumption, engine.plan)
        resuming.restore_state(trainer, resumption)
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, trainer.optimizer, trainer.lr_scheduler
    handler.train_dataloader = loader
    trainer._initial_num_input_tokens_seen = 0
    announce(trainer, engine.plan)
    saving.write_json(os.path.join(args.output_dir, saving.CONFIGURATION_NAME), resolved_configuration(args))
    rate = matrix_rate(engine.device, engine.compute_dtype)
    metrics = os.path.join(args.output_dir, saving.METRICS_NAME)
    trainer.metrics_writer = MetricsWriter(metrics, engine.device, rate, full_disk_policy(trainer))
    updater = _updater(trainer, engine)
    train_loop = TrainLoop(
        trainer,
        data_loader,
        metrics_writer=trainer.metrics_writer,
        steps=updater.steps,
        steps_in_epoch=steps_in_epoch or 1,
        num_train_samples=num_train_samples,
        ignore_keys_for_eval=ignore_keys,
        measures_targets=not trainer.uses_padded_batches,
    )
    updater.pause = trainer.pause = train_loop.interrupts.pause
    number = checkpoint.run_number(Path(args.output_dir), None if resumption is None else resumption.folder)
    trainer.checkpoints = train_loop.checkpoints = Checkpoints(trainer, engine, updater, train_loop.state, number)
    first_epoch = seen = 0
    if resumption is not None:
        updater.load_state(resumption.content["updater"])
        first_epoch, seen = train_loop.resume(resumption.content)
    else:
        _tell_earlier(trainer)
        rehearse_run(trainer, engine, data_loader, updater)
    trainer.checkpoints.prepare()
    epochs = range(first_epoch, num_train_epochs)
    return train_loop, loop.loop(epochs, data_loader.batches, _stepper(trainer, engine, updater), seen=seen)


def _tell_earlier(trainer: SFTTrainer) -> None:
    """Say what a run that begins anew will do to an earlier one in its folder, while it can still be stopped."""
    found = checkpoint.in_order(Path(trainer.args.output_dir))
    if found:
        limit = ", and it may be deleted (save_total_limit)" if trainer.args.save_total_limit else ""
        trainer.say(
            f"{trainer.args.output_dir} holds {found[-1].name} of an earlier run{limit}: this one begins anew, and "
            "adds its lines to metrics.jsonl. To go on with the earlier one: train(resume_from_checkpoint=True), or "
            "--resume."
        )


def _stepper(trainer: SFTTrainer, engine: Engine, updater: Updater) -> EngineStepper:
    if trainer.uses_padded_batches:
        return PaddedStepper(trainer, engine, updater, trainer.data_collator)
    return EngineStepper(engine, updater)


def _updater(trainer: SFTTrainer, engine: Engine) -> Updater:
    scheduler = trainer.lr_scheduler
    return Updater(
        trainer.optimizer,
        scheduler,
        engine,
        trainer.args.max_grad_norm,
        steps_on_metrics=isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        or type(scheduler).__name__ == "GreedyLR",
        recovery=trainer.recovery,
        policy=non_finite_policy(trainer),
    )


def fresh_state(trainer: Any, max_steps: int, num_train_epochs: int) -> TrainerState:
    """A new `TrainerState`, as Trainer makes one at the start of `train()`."""
    state = TrainerState(
        stateful_callbacks=[
            callback
            for callback in [*trainer.callback_handler.callbacks, trainer.control]
            if isinstance(callback, ExportableState)
        ]
    )
    state.is_hyper_param_search = False
    state.train_batch_size = trainer._train_batch_size
    state.compute_steps(trainer.args, max_steps)
    trainer.state = state
    state.init_training_references(trainer, max_steps, num_train_epochs, None)
    return state


def do_nothing() -> None:
    """What `trainer.pause` is outside of training."""


def _save_interrupted(trainer: SFTTrainer, train_loop: TrainLoop, why: str) -> None:
    """A checkpoint of the steps that are done, where checkpoints are wanted and this one is not there yet."""
    if trainer.args.save_strategy == SaveStrategy.NO or not train_loop.is_whole or train_loop.interrupts.is_urgent:
        return

    def save() -> None:
        if trainer.state.global_step > train_loop.last_saved:
            train_loop.save()
        assert train_loop.checkpoints is not None
        train_loop.checkpoints.wait()

    if trainer.state.global_step > 0:
        interrupted_save(trainer, save, why)


def _keep_weights(trainer: SFTTrainer, train_loop: TrainLoop, error: BaseException) -> None:
    """See that the weights of the last step are on the disk, whatever has failed after it, and say where."""
    if not train_loop.is_trained:
        return
    if trainer.state.global_step > train_loop.last_saved:
        with suppress(Exception):  # what follows needs less
            _save_interrupted(trainer, train_loop, f"{type(error).__name__} after the last step")
    folder = Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    with suppress(Exception):
        if train_loop.checkpoints is not None:
            train_loop.checkpoints.wait()
    if train_loop.takes_best:
        rescue.tell(trainer, error, f"the best weights are in {trainer.state.best_model_checkpoint}")
    elif folder.is_dir() and trainer.state.global_step == train_loop.last_saved:
        rescue.tell(trainer, error, f"the weights of step {trainer.state.global_step} are in {folder}")
    else:
        rescue.keep_weights(trainer, trainer.args.output_dir, error)


def _end(trainer: SFTTrainer) -> None:
    """Whatever happened: files closed, no gradients left."""
    if trainer.metrics_writer is not None:
        trainer.metrics_writer.close()
        if trainer.metrics_writer.num_waiting:
            trainer.say(
                f"{trainer.metrics_writer.num_waiting} lines of {saving.METRICS_NAME} never had room on the disk."
            )
        trainer.metrics_writer = None
    if trainer.checkpoints is not None:
        trainer.checkpoints.settle()
        trainer.checkpoints = None
    trainer.pause = do_nothing
    trainer.model.zero_grad(set_to_none=True)
    trainer.is_in_train = False
