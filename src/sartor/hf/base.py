"""What every file of the bridge knows of a trainer: transformers' Trainer, with the session of its run beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from sartor.config import Settings
from sartor.engine.precision import Masters
from sartor.engine.step import Engine
from sartor.hf.settings import run_settings
from sartor.memory.optimizers import maker_like
from sartor.memory.prediction import MakeOptimizer
from sartor.records import Plan
from sartor.run import rescue, voice
from sartor.run.data_loader import TrainDataLoader
from sartor.run.preparation import Preparation
from sartor.run.recover import Recovery
from sartor.run.sampling import SampleAnswers
from sartor.run.session import Session
from sartor.run.train_loop import TrainLoop


def do_nothing() -> None:
    """What `trainer.pause` is outside of training."""


class SessionTrainer(Trainer):
    """A trainer whose runs are a session's."""

    session: Session
    """Of the last run, or the next one; see `refresh`."""
    resolved: Settings
    """The options, as they were checked when the trainer was made."""
    train_loop: TrainLoop | None = None
    """While training."""
    figures: tuple[str, ...] = ()
    """In the run folder, drawn after the last training."""
    sample_answers: SampleAnswers | None = None
    has_told_logits = False
    """Whether it was said what keeping logits costs."""
    pushes = True
    """Whether checkpoints are pushed, where the user wants that: not after an interrupt."""
    optimizer: Any
    pause: Callable[[], None] = staticmethod(do_nothing)
    """Where an interrupt that has waited may be raised; set by a training."""
    uses_padded_batches = False
    """Whether an own loss or data_collator gets padded batches and full logits."""
    has_own_collator = False
    dataset_id: str | None = None
    """The Hub id that the training data came from."""
    pending_metrics: dict[str, float]
    """What the next log has besides what it is given."""
    total_train_tokens = 0
    base_licenses: dict[str, str | None]

    def refresh(self) -> Session:
        """The session with what trainer and `args` say now: either may have been changed since the last run."""
        session = self.session
        own_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        session.settings = run_settings(
            self.args, self.resolved, own_loss=self.uses_padded_batches, own_optimizer=own_optimizer
        )
        session.folder = Path(self.args.output_dir)
        session.tokenizer = self.processing_class
        session.data.train, session.data.evaluation = self.train_dataset, self.eval_dataset
        return session

    @property
    def plan(self) -> Plan | None:
        """Of the last training."""
        return self.session.plan

    @property
    def memory(self) -> dict[str, Any] | None:
        """Of the last rehearsal: what was predicted and measured, as `memory.json` has it."""
        return self.session.memory

    @property
    def engine(self) -> Engine | None:
        """While training or evaluating."""
        return self.session.engine

    @property
    def recovery(self) -> Recovery | None:
        """As long as the engine is there: what is done when memory runs out."""
        return self.session.recovery

    @property
    def preparation(self) -> Preparation:
        """How data sets are prepared, and what was found in them."""
        return self.session.data

    @property
    def masters(self) -> Masters:
        """Of the model's parameters."""
        return self.session.masters

    def say(self, message: str) -> None:
        """Tell the user one thing, from one process of several."""
        if self.is_world_process_zero():
            voice.say(message)

    def own_saving(self) -> Callable[[Path], None] | None:
        """How the user's own `save_model` saves; None where there is none."""
        if "save_model" in vars(self) or not type(self).save_model.__module__.startswith("sartor."):
            return lambda folder: self.save_model(str(folder), _internal_call=True)
        return None

    def data_loader(self) -> TrainDataLoader:
        """The training data, as batches."""
        return TrainDataLoader(self.train_dataset, self.model, self.session.settings)

    def optimizer_maker(self) -> MakeOptimizer:
        """How to make an optimizer of the kind and with the options that this trainer's has, or will have."""
        if self.optimizer is not None:
            return maker_like(self.optimizer)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        return lambda groups: kind(groups, **options)

    def made_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, made where there is none."""
        self.create_optimizer()
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def keep_weights(self, folder: Path, error: BaseException) -> None:
        """Leave the weights in a subfolder `rescued-STEP`, as far as they can be written, and say so."""
        step, is_own = self.state.global_step, self.own_saving() is not None
        target = folder / f"rescued-{step}"
        rescue.keep_weights(
            self.model, self.masters, self.processing_class, target, step, error, self.say, is_own=is_own
        )
