"""What is foreseen: the shape of a micro-batch, and everything about a training that changes bytes; frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sartor.memory.optimizers import MakeOptimizer
from sartor.records import EngineSettings


@dataclass(frozen=True, slots=True)
class Work:
    """What goes through the model at once."""

    document_lengths: tuple[int, ...]
    num_targets: int
    num_micro_batches: int = 1
    """Of the optimizer batch: from the second one on, gradients are there before the pass begins."""


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
    """That change its states; see `registry.options_of`."""
    make_optimizer: MakeOptimizer | None = None
    """Takes the place of `optimizer`'s own maker."""
    rehearses: bool = False
    """Add the stretches of a rehearsal before the first step."""
    rehearses_update: bool = True
    """Whether a rehearsal takes the first update, too."""
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
