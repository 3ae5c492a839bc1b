"""The training loop, as a generator of events.

In: epochs, a source of optimizer batches, and a stepper that computes.  Out: events, in the order in which
transformers' Trainer calls its callbacks.  Whoever drives the generator answers an event with a `Reply`; the loop
itself logs nothing, saves nothing and knows no limits: "enough steps" is a reply too.

One optimizer batch:

    StepBegin, <gradients of the whole batch>, SubstepEnd x (device batches - 1), <clip>, PreOptimizerStep, <update>,
    OptimizerStepped, <schedule>, StepEnd
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from sartor.records import Example, StepResult


@dataclass(frozen=True, slots=True)
class OptimizerBatch:
    """The examples of one optimizer step, as device batches that the user's settings define."""

    examples: tuple[Example, ...]
    keys: tuple[int, ...]
    """Each example's index in its data set."""
    device_batch_sizes: tuple[int, ...]
    """Examples of each device batch; they add up to the number of examples."""
    is_complete: bool = True
    """False for what is left when a stream ends inside an accumulation: it is not stepped on."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """The examples as the data set gave them, with all their columns, where a user's own collator wants them."""

    @property
    def num_tokens(self) -> int:
        """Of all examples."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def num_targets(self) -> int:
        """Of all examples."""
        return sum(example.num_targets for example in self.examples)

    @property
    def total_weight(self) -> float:
        """What its targets weigh together: what the sum of their losses is divided by."""
        return sum(example.total_weight for example in self.examples)

    def device_batches(self) -> Iterator[slice]:
        """Where each device batch lies in `examples`, `keys` and `rows`: sizes (2, 1) are slices 0:2 and 2:3."""
        start = 0
        for size in self.device_batch_sizes:
            yield slice(start, start + size)
            start += size


class Reply(Enum):
    """What the driver answers to an event."""

    GO_ON = auto()
    STOP_EPOCH = auto()
    STOP_TRAINING = auto()


@dataclass(frozen=True, slots=True)
class EpochBegin:
    """An epoch begins."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StepBegin:
    """An optimizer step begins; nothing is computed yet."""


@dataclass(frozen=True, slots=True)
class SubstepEnd:
    """A device batch that is not the last of its optimizer batch is done."""


@dataclass(frozen=True, slots=True)
class PreOptimizerStep:
    """Gradients are complete and clipped."""


@dataclass(frozen=True, slots=True)
class OptimizerStepped:
    """Parameters are updated, the schedule is not yet."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """An optimizer step is done."""

    result: StepResult
    learning_rate: float
    """The one that was used."""
    num_device_batches: int
    """Seen in this epoch so far."""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch is done, or was stopped."""

    num_device_batches: int
    """Seen in it; 0: the source had nothing."""


Event = EpochBegin | StepBegin | SubstepEnd | PreOptimizerStep | OptimizerStepped | StepEnd | EpochEnd


class Stepper(Protocol):
    """What the loop needs of whoever computes."""

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        """Gradients of the whole batch, complete and unclipped; `grad_norm` of the result is not known yet."""
        ...

    def clip(self, result: StepResult) -> StepResult:
        """Clip, and say what the norm was before."""
        ...

    def update(self) -> None:
        """Update the parameters."""
        ...

    def schedule(self) -> float:
        """Advance the schedule and clear the gradients; returns the learning rate that was used."""
        ...

    def discard(self) -> None:
        """Clear the gradients of a batch that is not stepped on."""
        ...


def loop(
    epochs: Iterable[int], batches: Callable[[int], Iterable[OptimizerBatch]], stepper: Stepper, *, seen: int = 0
) -> Generator[Event, Reply, None]:
    """Run epochs until they end or a reply stops them.

    Args:
        epochs: numbers of the epochs to run.
        batches: the optimizer batches of an epoch.
        stepper: computes.
        seen: device batches of the first epoch that were gone through before, in a run that is resumed: `batches` does
            not give them again.
    """
    for epoch in epochs:
        yield EpochBegin(epoch)
        reply = Reply.GO_ON
        for batch in batches(epoch):
            yield StepBegin()
            result = stepper.gradients(batch)
            num_substeps = len(batch.device_batch_sizes) - (1 if batch.is_complete else 0)
            for _ in range(num_substeps):
                seen += 1
                reply = yield SubstepEnd()
                if reply is not Reply.GO_ON:
                    break
            if reply is not Reply.GO_ON or not batch.is_complete:
                stepper.discard()
                break
            result = stepper.clip(result)
            yield PreOptimizerStep()
            stepper.update()
            yield OptimizerStepped()
            learning_rate = stepper.schedule()
            seen += 1
            reply = yield StepEnd(result, learning_rate, seen)
            if reply is not Reply.GO_ON:
                break
        end = yield EpochEnd(seen)
        seen = 0
        if Reply.STOP_TRAINING in (reply, end):
            return
