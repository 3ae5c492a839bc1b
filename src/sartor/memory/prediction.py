"""What a simulation takes and returns, all of it frozen.

In: the shape of a micro-batch, and everything about a training that changes bytes.  Out: bytes by component, over the
stretches of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch

from sartor.records import EngineSettings


class Phase(StrEnum):
    """What a step is doing."""

    BUILD = "build"
    BATCH = "batch"
    REHEARSAL = "rehearsal"
    FIRST_UPDATE = "first update"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    CLIP = "clip"
    UPDATE = "update"
    ANSWERS = "answers"
    SAVING = "saving"


PASS = frozenset({Phase.FORWARD, Phase.LOSS, Phase.BACKWARD})
"""What a micro-batch goes through when it is trained."""


class Component(StrEnum):
    """What memory is spent on, in the order in which it is shown."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer states"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    """Everything that the loss makes: chunks of logits and their gradients, the head's weight in the compute dtype."""
    TEMPORARIES = "temporaries"
    """What lives within one stretch: intermediate results, gradients on their way."""
    SCRATCH = "scratch"
    """What kernels take for themselves while they run, by the table in `kernel_rules.py`."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The largest moment of a part of a step."""

    phase: str
    layer: int | None
    """Of the decoder, from 0; None outside of its layers."""
    components: Mapping[Component, int]
    """Bytes."""

    @property
    def num_bytes(self) -> int:
        """All components together."""
        return sum(self.components.values())

    @property
    def label(self) -> str:
        """For people: `backward, layer 3`."""
        return self.phase if self.layer is None else f"{self.phase}, layer {self.layer}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The memory of one optimizer step (or of another operation), predicted."""

    timeline: tuple[Stretch, ...]
    """In the order in which they happen."""
    margin_bytes: int
    """What may come on top of `peak_bytes` without being tracked: kernels' workspaces that no table lists."""
    overhead_bytes: int
    """What the process or the device's context holds beside tensors, by the allocator's rules."""
    resident_bytes: int
    """What the system will count: peak plus the allocator's own losses; with `overhead_bytes`."""
    notes: tuple[str, ...] = ()
    """How it was found, and what in it is by rule and not measured."""

    @property
    def peak(self) -> Stretch:
        """The stretch that needs most.

        A rehearsal's pass is the step's own beside copies of the model's buffers, most of them a few kilobytes: as long
        as they stay under a thousandth, what is named is the step's.
        """
        return max(self.timeline, key=lambda part: part.num_bytes * (0.999 if part.phase == "rehearsal" else 1.0))

    @property
    def rehearsal_bytes(self) -> int:
        """Of the rehearsal, at its worst moment; of the step, where no rehearsal was simulated."""
        return max((part.num_bytes for part in self.timeline if part.phase == "rehearsal"), default=self.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Of all tensors and kernels' scratch, at the worst moment."""
        return self.peak.num_bytes

    @property
    def components(self) -> Mapping[Component, int]:
        """Bytes per component at the worst moment."""
        return self.peak.components


MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""From parameter groups to an optimizer."""


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
