"""A whole training of a session: the parts in their order, and everything put back when it ends.

In: a session with prepared data, and its optimizer and schedule.  Out: a train loop that is ready to run, from its
first step or from a checkpoint.  `hf/training.py` runs it through Trainer's callbacks, `training` without.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartor.device import kind_of
from sartor.engine.step import Engine
from sartor.errors import ConfigurationError
from sartor.memory.heap import retaining
from sartor.optim.registry import set_implementation
from sartor.ranks import Ranks
from sartor.run import checkpoint, folder_lock, loop, rescue, resume, saving
from sartor.run.checkpoints import Companion
from sartor.run.data_loader import TrainDataLoader
from sartor.run.metrics_writer import MetricsWriter
from sartor.run.output import lines_may_be_lost
from sartor.run.policies import freeze, full_disk_policy, non_finite_policy
from sartor.run.rehearsal import MEMORY_NAME, rehearse_run
from sartor.run.resume import Resumption
from sartor.run.session import Session
from sartor.run.settings import RunSettings
from sartor.run.setup import announce, count_streams, engine_for, matrix_rate
from sartor.run.stepper import EngineStepper, Updater
from sartor.run.train_loop import TrainLoop


@dataclass(frozen=True, slots=True)
class Length:
    """How long a training is."""

    num_epochs: int
    steps_in_epoch: int
    """Device batches of an epoch."""
    max_steps: int
    """Optimizer steps of the training."""
    num_checkpoints: int = 1
    """That it will save, about."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nothing in a run folder is touched before it is this run's alone; what is printed may be lost, the run may not.

    Raises:
        RunFolderError: another run has it, or it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(lines_may_be_lost())
        with saving.explained(folder):
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(folder_lock.held(folder))
        yield


@contextmanager
def computing(session: Session, data_loader: TrainDataLoader, resumption: Resumption | None) -> Iterator[Engine]:
    """The engine of a training, under the plan of the checkpoint that it goes on from, or a new one."""
    with ExitStack() as stack:
        stack.callback(session.model.zero_grad, set_to_none=True)
        stack.enter_context(retaining(wanted=kind_of(session.device).is_host))
        plan = None if resumption is None else resumption.plan
        if plan is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            resume.keep_threads(session.device, plan, session.say)
        engine = stack.enter_context(
            engine_for(
                session, longest_tokens=data_loader.longest_document, trains=True, frozen=plan, data_loader=data_loader
            )
        )
        session.plan = engine.plan
        data_loader.traits = engine.traits
        yield engine


def start(
    session: Session,
    data_loader: TrainDataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    length: Length,
    *,
    make_stepper: Callable[[Engine, Updater, Ranks], loop.Stepper] = EngineStepper,
    resumption: Resumption | None = None,
    companion: Companion | None = None,
) -> tuple[TrainLoop, dict[str, bool] | None]:
    """A train loop that is ready to run, and what callbacks had decided in the run that is gone on with.

    Args:
        session: whose engine is there.
        data_loader: gives optimizer batches.
        optimizer: of the training, new; its state and the weights are put back where the run is resumed.
        scheduler: of the training, likewise.
        length: of the training.
        make_stepper: makes what computes gradients.
        resumption: what is gone on from.
        companion: adds to checkpoints.

    Raises:
        OutOfMemoryError: not even one document goes through.
        RunFolderError: the folder cannot be written, or its disk has too little room.
    """
    folder, settings, say, recovery = session.folder, session.settings, session.say, session.recovery
    assert recovery is not None
    engine = recovery.engine
    set_implementation(optimizer, engine.plan.optimizer_implementation)
    if resumption is not None:
        resume.restore_weights(session.model, resumption)
        made_with = settings.configuration.optimizer
        resume.restore_optimizer(optimizer, scheduler, resumption, engine.plan, made_with, say)
    updater = Updater(
        optimizer,
        scheduler,
        engine,
        engine.settings.max_grad_norm,
        steps_on_metrics=isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        or type(scheduler).__name__ == "GreedyLR",
        recovery=recovery,
        policy=non_finite_policy(settings, session.data.places.get("train"), say),
    )
    announce(folder, engine.plan, session.data, say)
    saving.write_json(folder / saving.CONFIGURATION_NAME, settings.configuration.values)
    metrics_writer = MetricsWriter(
        os.fspath(folder / saving.METRICS_NAME),
        engine.device,
        matrix_rate(engine.device, engine.compute_dtype),
        full_disk_policy(settings, say),
    )
    train_loop = TrainLoop(
        session,
        data_loader,
        updater,
        metrics_writer,
        run=checkpoint.run_number(folder, None if resumption is None else resumption.folder),
        steps_in_epoch=length.steps_in_epoch,
        max_steps=length.max_steps,
        companion=companion or Companion(),
    )
    try:
        first_epoch, seen, control = 0, 0, None
        if resumption is not None:
            updater.load_state(resumption.content["updater"])
            first_epoch, seen, control = train_loop.resume(resumption.content)
        else:
            _tell_earlier(folder, settings.save_total_limit, say)
            rehearsed = rehearse_run(settings, data_loader, updater, length.max_steps, say)
            if rehearsed is not None:
                session.memory, session.plan = rehearsed
                freeze(session.plan, folder, say)
                saving.write_json(folder / MEMORY_NAME, session.memory)
        train_loop.checkpoints.prepare(length.num_checkpoints)
    except BaseException:
        train_loop.close()
        raise
    epochs, stepper = range(first_epoch, length.num_epochs), make_stepper(engine, updater, session.ranks)
    train_loop.events = loop.loop(epochs, data_loader.batches, stepper, seen=seen)
    return train_loop, control


def _tell_earlier(folder: Path, save_total_limit: int | None, say: Callable[[str], None]) -> None:
    """Say what a run that begins anew will do to an earlier one in its folder, while it can still be stopped."""
    found = checkpoint.in_order(folder)
    if found:
        limit = ", and it may be deleted (save_total_limit)" if save_total_limit else ""
        say(
            f"{folder} holds {found[-1].name} of an earlier run{limit}: this one begins anew, and "
            "adds its lines to metrics.jsonl. To go on with the earlier one: train(resume_from_checkpoint=True), or "
            "--resume."
        )


@contextmanager
def training(
    session: Session,
    make_optimizer: Callable[[int], tuple[torch.optim.Optimizer, Any]],
    *,
    resume_from_checkpoint: str | bool | None = None,
) -> Iterator[TrainLoop]:
    """A training without transformers' Trainer, as long as the block lasts; see `examples/session.py`.

    Args:
        session: with a prepared data set in `session.data.train`, of known length, or with `max_steps` set.
        make_optimizer: makes optimizer and schedule for so many optimizer steps, of the model's parameters as they are
            when it is called: what is trained is in float32 then.
        resume_from_checkpoint: as in `SFTTrainer.train`.

    Raises:
        ConfigurationError: there is nothing to train on; or the checkpoint is of another run.
        RunFolderError: the folder cannot be written, or there is no checkpoint to go on from.
    """
    if session.data.train is None:
        raise ConfigurationError("session.data.train is empty: prepare a data set with session.data.prepare(rows).")
    with alone_in(session.folder):
        resumption = resume.find(session, resume_from_checkpoint)
        rescue.check_savable(session.model, session.masters, session.tokenizer, is_own=False)
        data_loader = TrainDataLoader(session.data.train, session.model, session.settings)
        with computing(session, data_loader, resumption):
            length = _length(session.settings, data_loader)
            optimizer, scheduler = make_optimizer(length.max_steps)
            train_loop, _ = start(session, data_loader, optimizer, scheduler, length, resumption=resumption)
            try:
                yield train_loop
                train_loop.checkpoints.wait()
                count_streams(session.folder, session.data)
            finally:
                train_loop.close()


def _length(settings: RunSettings, data_loader: TrainDataLoader) -> Length:
    if data_loader.examples is None:
        if settings.max_steps <= 0:
            raise ConfigurationError("the data set is a stream, whose length is not known: set max_steps.")
        return Length(10**9, settings.max_steps * settings.accumulation, settings.max_steps)
    device_batches = [len(group) for group in data_loader.groups(0)]
    if not device_batches:
        raise ConfigurationError("the data set has no example.")
    max_steps = settings.max_steps
    if max_steps <= 0:
        max_steps = math.ceil(settings.num_train_epochs * len(device_batches))
    return Length(math.ceil(max_steps / len(device_batches)), sum(device_batches), max_steps)
