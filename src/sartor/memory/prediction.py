"""What a simulation returns: bytes by component, over the stretches of a step, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


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
    """What kernels take for themselves while they run, by the table in `scratch.py`."""


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
    """The memory of one optimizer step (or of another operation), foreseen."""

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
        """Of the rehearsal, at its worst moment; of the step, where no rehearsal was foreseen."""
        return max((part.num_bytes for part in self.timeline if part.phase == "rehearsal"), default=self.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Of all tensors and kernels' scratch, at the worst moment."""
        return self.peak.num_bytes

    @property
    def components(self) -> Mapping[Component, int]:
        """Bytes per component at the worst moment."""
        return self.peak.components
