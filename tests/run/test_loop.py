"""The loop: which events come in which order, what is computed between them, and what a reply does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from sartor.records import Example, LossSums, StepResult
from sartor.run.loop import (
    EpochBegin,
    EpochEnd,
    Event,
    OptimizerBatch,
    OptimizerStepped,
    PreOptimizerStep,
    Reply,
    StepBegin,
    StepEnd,
    SubstepEnd,
    loop,
)

ZERO = torch.zeros(())


class Stepper:
    """Writes down what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        self.asked.append(f"gradients of {len(batch.examples)}")
        return StepResult(LossSums(ZERO, ZERO, ZERO, 1), None, len(batch.examples), 1)

    def clip(self, result: StepResult) -> StepResult:
        self.asked.append("clip")
        return replace(result, grad_norm=2.0)

    def update(self) -> None:
        self.asked.append("update")

    def schedule(self) -> float:
        self.asked.append("schedule")
        return 0.5

    def discard(self) -> None:
        self.asked.append("discard")


def batch(*sizes: int, is_complete: bool = True) -> OptimizerBatch:
    count = sum(sizes)
    return OptimizerBatch(tuple(Example([1], [1]) for _ in range(count)), tuple(range(count)), sizes, is_complete)


def run(
    batches: Sequence[OptimizerBatch], replies: dict[int, Reply] | None = None, epochs: int = 1
) -> tuple[list[Any], list[str]]:
    """All events, and what the stepper was asked, with replies by the number of the event."""
    stepper = Stepper()
    events: list[Event] = []

    def source(epoch: int) -> Iterator[OptimizerBatch]:
        yield from batches

    generator = loop(range(epochs), source, stepper)
    event = next(generator)
    while True:
        events.append(event)
        try:
            event = generator.send((replies or {}).get(len(events) - 1, Reply.GO_ON))
        except StopIteration:
            return events, stepper.asked


def kinds(events: list[Any]) -> list[type]:
    return [type(event) for event in events]


STEP = [StepBegin, PreOptimizerStep, OptimizerStepped, StepEnd]


def test_a_step_of_three_device_batches_has_two_substeps() -> None:
    events, asked = run([batch(2, 2, 1)])
    assert kinds(events) == [EpochBegin, StepBegin, SubstepEnd, SubstepEnd, *STEP[1:], EpochEnd]
    assert asked == ["gradients of 5", "clip", "update", "schedule"]
    end = events[-2]
    assert (end.result.grad_norm, end.learning_rate, end.num_device_batches) == (2.0, 0.5, 3)
    assert events[-1] == EpochEnd(3)


def test_epochs_are_numbered_and_device_batches_counted_anew() -> None:
    events, _ = run([batch(1), batch(1)], epochs=2)
    assert kinds(events) == [EpochBegin, *STEP, *STEP, EpochEnd] * 2
    assert [event.epoch for event in events if isinstance(event, EpochBegin)] == [0, 1]
    assert [event.num_device_batches for event in events if isinstance(event, StepEnd)] == [1, 2, 1, 2]


def test_what_is_left_of_a_stream_is_computed_and_thrown_away() -> None:
    events, asked = run([batch(2, 2), batch(2, is_complete=False)])
    assert kinds(events) == [
        EpochBegin,
        StepBegin,
        SubstepEnd,
        *STEP[1:],
        StepBegin,
        SubstepEnd,
        EpochEnd,
    ]
    assert asked == ["gradients of 4", "clip", "update", "schedule", "gradients of 2", "discard"]


def test_a_stop_in_a_substep_throws_the_batch_away() -> None:
    events, asked = run([batch(1, 1, 1), batch(1)], {2: Reply.STOP_TRAINING}, epochs=3)
    assert kinds(events) == [EpochBegin, StepBegin, SubstepEnd, EpochEnd]
    assert asked == ["gradients of 3", "discard"]


def test_a_stop_of_the_epoch_goes_on_with_the_next() -> None:
    events, _ = run([batch(1), batch(1)], {4: Reply.STOP_EPOCH}, epochs=2)
    assert kinds(events) == [EpochBegin, *STEP, EpochEnd, EpochBegin, *STEP, *STEP, EpochEnd]


def test_a_stop_of_the_training_still_ends_the_epoch() -> None:
    events, _ = run([batch(1), batch(1)], {4: Reply.STOP_TRAINING}, epochs=2)
    assert kinds(events) == [EpochBegin, *STEP, EpochEnd]


def test_a_stop_at_the_end_of_an_epoch_begins_no_other() -> None:
    events, _ = run([batch(1)], {5: Reply.STOP_TRAINING}, epochs=2)
    assert kinds(events) == [EpochBegin, *STEP, EpochEnd]


def test_an_epoch_without_a_batch_says_so() -> None:
    events, asked = run([])
    assert events == [EpochBegin(0), EpochEnd(0)]
    assert asked == []


def test_device_batches_are_consecutive_slices() -> None:
    assert list(batch(2, 2, 1).device_batches()) == [slice(0, 2), slice(2, 4), slice(4, 5)]
