"""What is foreseen: the shape of a micro-batch, and everything about a training that changes bytes; frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sartor.memory.optimizers import MakeOptimizer
from sartor.records import EngineSettings, Plan


@dataclass(frozen=True, slots=True)
class Work:
    """What goes through the model at once."""

    document_lengths: tuple[int, ...]
    num_targets: int
    num_micro_batches: int = 1
    """Of the optimizer batch: from the second one on, gradients are there before the pass begins."""


def _plain_update(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    optimizer.step()


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that are answered together, greedily, while training goes on."""

    num_prompts: int
    prompt_tokens: int
    """Of the longest."""
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, and how: everything that changes bytes beside the plan."""

    arrival_dtype: str = "float32"
    """That the model was loaded in; what is trained becomes float32."""
    optimizer: str = "adamw_torch_fused"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    """That change its states; see `optimizers.options_of`."""
    make_optimizer: MakeOptimizer | None = None
    """Takes the place of `optimizer`'s own maker."""
    update: Callable[[torch.optim.Optimizer, Plan], None] = _plain_update
    """How the run takes the optimizer's step under a plan."""
    rehearse: Callable[[torch.optim.Optimizer, Plan], bool] | None = None
    """How a rehearsal takes the first step, weights put back; it says whether it did.  None: there is no rehearsal, and
    no stretch of it."""
    lora: Any = None
    """A peft configuration."""
    four_bit: bool = False
    """Frozen weights are quantized to 4 bits."""
    settings: EngineSettings = field(default_factory=EngineSettings)
    balance_coefficient: float = 0.0
    saves: bool = False
    """Add the stretch of saving: what was widened once more, in the dtype that it arrived in."""
    asked: Asked | None = None
    """Add the stretches of answering: the questions at once, and the last token with keys and values of all others."""
