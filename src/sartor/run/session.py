"""One run of one model: what its parts hand to each other, in one place.

In: a model, a tokenizer and settings.  Out: what planning, the train loop, evaluation, sampling and checkpoints know of
each other's work: the plan, the steps that are done, the engine while there is one.  A function takes what it needs of
a session, and the whole of it only where it needs most of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sartor.engine.precision import Masters
from sartor.engine.step import Engine
from sartor.ranks import ALONE, Ranks
from sartor.records import Plan
from sartor.run import saving, voice
from sartor.run.preparation import Preparation
from sartor.run.recover import Recovery
from sartor.run.settings import RunSettings
from sartor.run.steps import StepCounter


@dataclass(eq=False, slots=True)
class Session:
    """One run; see `examples/session.py` for a whole training with it."""

    model: Any
    """A causal language model of transformers, or a `PeftModel`; trained in place."""
    tokenizer: Any
    settings: RunSettings
    data: Preparation
    """How data sets are prepared; holds those that are trained and evaluated on."""
    folder: Path
    """Where the run writes."""
    masters: Masters
    """Of the model's parameters."""
    say: Callable[[str], None] = voice.say
    """Tells the user one thing."""
    ranks: Ranks = ALONE
    plan: Plan | None = None
    """Of the last training."""
    steps: StepCounter = field(default_factory=StepCounter)
    """Of the training that is under way, or of the last one."""
    recovery: Recovery | None = None
    """What is done when memory runs out, and of which engine; there while something is computed."""
    memory: dict[str, Any] | None = None
    """Of the last rehearsal: what was predicted and measured, as `memory.json` has it."""

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, folder: str | os.PathLike[str], settings: RunSettings | None = None
    ) -> Session:
        """A session for a model that is loaded.

        Args:
            model: see `Session.model`.
            tokenizer: with a chat template where rows are conversations, and with a pad token.
            folder: where the run writes; made if need be.
            settings: default: those of `SFTConfig`.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        settings = settings or RunSettings()
        saving.check_folder(folder)
        data = Preparation(tokenizer, settings.data, settings.data)
        return cls(model, tokenizer, settings, data, Path(folder), Masters(model))

    @property
    def engine(self) -> Engine | None:
        """While something is computed."""
        return None if self.recovery is None else self.recovery.engine

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Model and tokenizer into a folder that `from_pretrained` loads, in the dtype that the model arrived in.

        Raises:
            RunFolderError: it cannot be written, or the disk is full.
        """
        saving.save_model_alone(self.model, self.masters, folder)
        saving.save_tokenizer(self.tokenizer, folder)
