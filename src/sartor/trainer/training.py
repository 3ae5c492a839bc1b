"""`train()`: state, optimizer, schedule and loop of a run, in the order in which transformers' Trainer makes them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from transformers.trainer_utils import SaveStrategy, TrainOutput, align_special_tokens

from sartor.config import resolved_configuration
from sartor.engine.step import Engine
from sartor.errors import RunFolderError
from sartor.memory.allocator import retaining
from sartor.run import loop
from sartor.run.stepper import EngineStepper, Updater
from sartor.trainer import saving
from sartor.trainer.driving import Drive, fresh_state
from sartor.trainer.evaluating import lazy_loader
from sartor.trainer.feed import Feed
from sartor.trainer.journal import Journal
from sartor.trainer.padded import PaddedStepper
from sartor.trainer.setup import announce, engine_for, matrix_rate

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer


def train(trainer: SFTTrainer, ignore_keys: list[str] | None) -> TrainOutput:
    """Run a training from its first step to its last log; see `SFTTrainer.train` for what is raised."""
    trainer._memory_tracker.start()
    align_special_tokens(trainer.model, trainer.processing_class)
    feed = Feed(trainer)
    with ExitStack() as stack:
        stack.callback(_end, trainer)
        trainer.is_in_train = True
        stack.enter_context(retaining(wanted=trainer.args.device.type == "cpu"))
        engine = stack.enter_context(engine_for(trainer, longest_tokens=feed.longest_document, trains=True))
        trainer.plan = engine.plan
        feed.traits = engine.traits
        drive, events = _start(trainer, engine, feed, ignore_keys)
        try:
            return drive.run(events)
        except KeyboardInterrupt:
            _save_interrupted(trainer, drive)
            raise


def _start(
    trainer: SFTTrainer, engine: Engine, feed: Feed, ignore_keys: list[str] | None
) -> tuple[Drive, Generator[loop.Event, loop.Reply, None]]:
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
    trainer.create_scheduler(num_training_steps=max_steps)
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, trainer.optimizer, trainer.lr_scheduler
    handler.train_dataloader = loader
    trainer._initial_num_input_tokens_seen = 0
    announce(trainer, engine.plan)
    saving.write_json(os.path.join(args.output_dir, saving.CONFIGURATION_NAME), resolved_configuration(args))
    rate = matrix_rate(engine.device, engine.compute_dtype)
    trainer.journal = Journal(os.path.join(args.output_dir, saving.METRICS_NAME), engine.device, rate)
    drive = Drive(
        trainer,
        feed,
        journal=trainer.journal,
        steps_in_epoch=steps_in_epoch or 1,
        num_train_samples=num_train_samples,
        ignore_keys_for_eval=ignore_keys,
        measures_targets=not trainer.uses_padded_batches,
    )
    return drive, loop.loop(range(num_train_epochs), feed.batches, _stepper(trainer, engine))


def _stepper(trainer: SFTTrainer, engine: Engine) -> EngineStepper | PaddedStepper:
    scheduler = trainer.lr_scheduler
    updater = Updater(
        trainer.optimizer,
        scheduler,
        engine,
        trainer.args.max_grad_norm,
        steps_on_metrics=isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        or type(scheduler).__name__ == "GreedyLR",
    )
    if trainer.uses_padded_batches:
        return PaddedStepper(trainer, engine, updater, trainer.data_collator)
    return EngineStepper(engine, updater)


def _save_interrupted(trainer: SFTTrainer, drive: Drive) -> None:
    """A checkpoint of the steps that are done, where checkpoints are wanted and this one is not there yet."""
    if trainer.args.save_strategy == SaveStrategy.NO or trainer.state.global_step <= drive.last_saved:
        return
    try:
        drive.save()
    except RunFolderError as error:  # the interrupt is what the caller must see
        trainer.say(f"interrupted, and nothing could be saved: {error}")
    else:
        trainer.say(f"interrupted: checkpoint-{trainer.state.global_step} is saved in {trainer.args.output_dir}")


def _end(trainer: SFTTrainer) -> None:
    """Whatever happened: files closed, no gradients left."""
    if trainer.journal is not None:
        trainer.journal.close()
        trainer.journal = None
    trainer.model.zero_grad(set_to_none=True)
    trainer.is_in_train = False
