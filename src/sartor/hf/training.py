"""`train()`: state, optimizer, schedule and loop of a run, in the order in which transformers' Trainer makes them."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import SaveStrategy, TrainOutput, align_special_tokens

from sartor.engine.step import Engine
from sartor.errors import NonFiniteError, OutOfMemoryError, RunFolderError, is_out_of_memory
from sartor.hf import hub
from sartor.hf.base import SessionTrainer, do_nothing
from sartor.hf.evaluating import lazy_loader
from sartor.hf.padded import PaddedStepper
from sartor.hf.state import TrainersCompanion, read_trainer_state, restore_state
from sartor.hf.trainer_loop import TrainerLoop
from sartor.ranks import Ranks
from sartor.run import checkpoint, rescue, resume
from sartor.run.data_loader import TrainDataLoader
from sartor.run.interrupt import Terminated
from sartor.run.resume import Resumption
from sartor.run.setup import count_streams
from sartor.run.stepper import EngineStepper, Updater
from sartor.run.training import Length, alone_in, computing, start

_NONE_SAVED = "No checkpoint was saved before it."


def train(
    trainer: SessionTrainer, ignore_keys: list[str] | None, asked: str | bool | os.PathLike[str] | None = None
) -> TrainOutput:
    """Run a training from its first step, or from a checkpoint, to its last log; see `SFTTrainer.train`."""
    with alone_in(Path(trainer.args.output_dir)):
        trainer._memory_tracker.start()  # which knows its callers by their names
        return _train(trainer, ignore_keys, asked)


def _train(
    trainer: SessionTrainer, ignore_keys: list[str] | None, asked: str | bool | os.PathLike[str] | None
) -> TrainOutput:
    session = trainer.refresh()
    saved: list[TrainerState] = []
    resumption = resume.find(
        session, asked, lambda path, content: saved.append(read_trainer_state(path, content["steps"]["done"]))
    )
    if resumption is not None:
        _show_split(trainer, is_final=True)
        trainer.say(f"going on from {resumption.folder}: step {saved[0].global_step} of {saved[0].max_steps}")
    align_special_tokens(trainer.model, trainer.processing_class)
    rescue.check_savable(
        trainer.model, trainer.masters, trainer.processing_class, is_own=trainer.own_saving() is not None
    )
    data_loader = trainer.data_loader()
    trainer.figures = ()
    with ExitStack() as stack:
        stack.callback(_end, trainer)
        trainer.is_in_train = True
        stack.enter_context(computing(session, data_loader, resumption))
        _show_split(trainer)
        train_loop = _start(trainer, data_loader, ignore_keys, resumption, saved)
        came_from = None if resumption is None else resumption.folder
        try:
            result = train_loop.run()
            count_streams(session.folder, session.data)
            return result
        except NonFiniteError as error:
            folder = _last_checkpoint(train_loop, came_from)
            where = f"The last good checkpoint is {folder}: every loss before it was finite." if folder else _NONE_SAVED
            raise NonFiniteError(f"{error} {where}") from error
        except OutOfMemoryError as error:
            _save_interrupted(train_loop, "memory ran out")
            folder = _last_checkpoint(train_loop, came_from)
            where = f"The run can go on from {folder}, where there is more memory." if folder else _NONE_SAVED
            _keep_weights(train_loop, error)
            raise OutOfMemoryError(f"{error} {where}") from error
        except (KeyboardInterrupt, Terminated):
            hub.give_up_pushes(trainer)
            trainer.pushes = False  # the program would wait for it
            _save_interrupted(train_loop, "interrupted")
            count_streams(session.folder, session.data)
            raise
        except BaseException as error:
            _keep_weights(train_loop, error)
            raise


def _show_split(trainer: SessionTrainer, *, is_final: bool = False) -> None:
    """Have transformers see how the session splits an optimizer batch, where that was left to the plan."""
    args, settings = trainer.args, trainer.session.settings
    if args.splits_batch and (not is_final or settings.total_batch_size is None):
        args.take_batch(settings.batch_size, settings.accumulation, is_final=is_final)
        trainer._train_batch_size = args.train_batch_size


def _start(
    trainer: SessionTrainer,
    data_loader: TrainDataLoader,
    ignore_keys: list[str] | None,
    resumption: Resumption | None,
    saved: list[TrainerState],
) -> TrainerLoop:
    args, session = trainer.args, trainer.session
    loader = lazy_loader(
        trainer.train_dataset, trainer._train_batch_size, trainer.data_collator, drop_last=args.dataloader_drop_last
    )
    num_train_epochs, _, _, num_train_samples, _, steps_in_epoch, max_steps = trainer.set_initial_training_values(
        args, loader
    )
    state = fresh_state(trainer, max_steps, num_train_epochs)
    if trainer._created_lr_scheduler:  # in an earlier train(): one that was passed in stays
        trainer.lr_scheduler = None
        trainer._created_lr_scheduler = False
    optimizer = trainer.made_optimizer()
    trainer.create_scheduler(num_training_steps=max_steps)
    if resumption is not None:
        restore_state(trainer, saved[0], resumption.folder)
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, optimizer, trainer.lr_scheduler
    handler.train_dataloader = loader
    trainer._initial_num_input_tokens_seen = 0

    def stepper(engine: Engine, updater: Updater, ranks: Ranks) -> EngineStepper:
        if trainer.uses_padded_batches:
            return PaddedStepper(trainer, engine, updater, trainer.data_collator)
        return EngineStepper(engine, updater, ranks)

    companion = TrainersCompanion(trainer)
    length = Length(num_train_epochs, steps_in_epoch or 1, max_steps, _num_checkpoints(trainer, state))
    train_loop, control = start(
        session,
        data_loader,
        optimizer,
        trainer.lr_scheduler,
        length,
        make_stepper=stepper,
        resumption=resumption,
        companion=companion,
    )
    if resumption is None:
        train_loop.num_tokens = trainer.total_train_tokens
    trainer.train_loop = train_loop
    trainer.pause = train_loop.interrupts.pause
    return TrainerLoop(
        trainer, train_loop, companion, num_train_samples=num_train_samples, ignore_keys=ignore_keys, decided=control
    )


def _num_checkpoints(trainer: SessionTrainer, state: TrainerState) -> int:
    if trainer.args.save_strategy == SaveStrategy.STEPS:
        return math.ceil(state.max_steps / max(state.save_steps or 1, 1))
    return math.ceil(state.num_train_epochs)


def fresh_state(trainer: SessionTrainer, max_steps: int, num_train_epochs: int) -> TrainerState:
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


# --- how a run ends --------------------------------------------------------------------------------------------------


def _last_checkpoint(train_loop: TrainerLoop, resumed_from: Path | None) -> Path | None:
    """For the error that ends a run: from where one can go on, perhaps in another folder; None: from nowhere."""
    checkpoints = train_loop.run_loop.checkpoints
    with suppress(RunFolderError):  # what the caller must see is the error
        checkpoints.wait()
    found = checkpoint.in_order(Path(train_loop.trainer.args.output_dir))
    ours = [path for path in found if checkpoint.run_of(path) == checkpoints.run]
    return ours[-1] if ours else resumed_from


def _save_interrupted(train_loop: TrainerLoop, why: str) -> None:
    """A checkpoint of the steps that are done, where checkpoints are wanted, and how to go on with it.

    What ends the run is what the caller must see in any case.
    """
    trainer, run_loop = train_loop.trainer, train_loop.run_loop
    step = trainer.state.global_step
    if trainer.args.save_strategy == SaveStrategy.NO or not run_loop.is_whole or run_loop.interrupts.is_urgent:
        return
    if not step:
        return
    try:
        if step > run_loop.last_saved:
            train_loop.save()
        run_loop.checkpoints.wait()
    except (RunFolderError, RuntimeError, MemoryError) as error:
        if not isinstance(error, RunFolderError) and not is_out_of_memory(error):
            raise
        trainer.say(f"{why}, and nothing could be saved: {error}")
    else:
        trainer.say(
            f"{why}: checkpoint-{step} is saved in {trainer.args.output_dir}. Go on with "
            "train(resume_from_checkpoint=True), or with the same command and --resume."
        )


def _keep_weights(train_loop: TrainerLoop, error: BaseException) -> None:
    """See that the weights of the last step are on the disk, whatever has failed after it, and say where."""
    trainer, run_loop = train_loop.trainer, train_loop.run_loop
    step = trainer.state.global_step
    if not train_loop.is_trained:
        return
    if step > run_loop.last_saved:
        with suppress(Exception):  # what follows needs less
            _save_interrupted(train_loop, f"{type(error).__name__} after the last step")
    folder = trainer.session.folder / f"{checkpoint.PREFIX}{step}"
    with suppress(Exception):
        run_loop.checkpoints.wait()
    if train_loop.takes_best:
        rescue.tell(trainer.say, error, f"the best weights are in {trainer.state.best_model_checkpoint}")
    elif folder.is_dir() and step == run_loop.last_saved:
        rescue.tell(trainer.say, error, f"the weights of step {step} are in {folder}")
    else:
        trainer.keep_weights(trainer.session.folder, error)


def _end(trainer: SessionTrainer) -> None:
    """Whatever happened: files are closed, and the trainer is as before."""
    if trainer.train_loop is not None:
        trainer.train_loop.close()
        trainer.train_loop = None
    trainer.pushes = True
    trainer.pause = do_nothing
    trainer.is_in_train = False
