"""The stepper that drives the engine: cuts, gradients, clipping, update, schedule.

In: optimizer batches of examples.  Out: step results.  What it keeps true: gradients are of the sum over the batch's
targets divided by their number, or by the sum of their weights, whatever the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sartor.batching.cut import cut_flat, cut_padded, make_micro_batch
from sartor.engine.step import Engine
from sartor.errors import DataError, NonFiniteError
from sartor.records import IGNORE_INDEX, Example, Layout, LossSums, MicroBatch, StepResult
from sartor.run.loop import OptimizerBatch


class EngineStepper:
    """Steps with our own engine."""

    def __init__(self, engine: Engine, updater: Updater) -> None:
        self._engine = engine
        self._updater = updater

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        """See `loop.Stepper`.

        Raises:
            DataError: the batch has no target.
            NonFiniteError: its loss is not finite.
        """
        engine = self._engine
        num_targets = sum(count_targets(example) for example in batch.examples)
        num_tokens = sum(len(example.input_ids) for example in batch.examples)
        if num_targets == 0:
            raise DataError(
                f"an optimizer batch has no target at all: {_rows(batch.keys)}. Nothing in it can be trained: drop "
                "rows "
                "without targets, or make the batch larger."
            )
        total_weight = sum_of_weights(batch.examples) if is_weighted(batch.examples) else num_targets
        engine.step_number = self._updater.num_updates
        engine.model.train()
        total: LossSums | None = None
        num_micro_batches = 0
        for micro in micro_batches(engine, batch.examples, batch.keys):
            sums = engine.backward(
                micro, batch_targets=total_weight, batch_tokens=num_tokens, loss_scale=self._updater.loss_scale
            )
            total = sums if total is None else total + sums
            num_micro_batches += 1
        assert total is not None
        if not torch.isfinite(total.loss_sum):
            raise not_finite(engine.step_number + 1, float(total.loss_sum), batch.keys)
        return StepResult(total, None, num_tokens, num_micro_batches)

    def clip(self, result: StepResult) -> StepResult:
        """See `loop.Stepper`."""
        return replace(result, grad_norm=self._updater.clip())

    def update(self) -> None:
        """See `loop.Stepper`."""
        self._updater.update()

    def schedule(self) -> float:
        """See `loop.Stepper`."""
        return self._updater.schedule()

    def discard(self) -> None:
        """See `loop.Stepper`."""
        self._updater.discard()


class Updater:
    """Clipping, update, loss scale and schedule: what every stepper does after its gradients are there."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        engine: Engine,
        max_grad_norm: float,
        steps_on_metrics: bool,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._engine = engine
        self._max_grad_norm = max_grad_norm
        self._steps_on_metrics = steps_on_metrics
        scaled = engine.compute_dtype == torch.float16
        self._scaler = torch.amp.GradScaler(engine.device.type) if scaled else None
        if self._scaler is not None:
            self._scaler.scale(torch.ones((), device=engine.device))  # it sets up its first scale when first used
        self._was_skipped = False
        self.num_updates = 0

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before their backward pass: 1 but in float16."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def clip(self) -> float:
        """Unscale, measure the norm, clip."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        return self._engine.gradient_norm(self._max_grad_norm)

    def update(self) -> None:
        """One optimizer step; in float16 it is skipped where gradients overflowed, and the scale is lowered."""
        if self._scaler is None:
            self._optimizer.step()
        else:
            before = self._scaler.get_scale()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._was_skipped = self._scaler.get_scale() < before
        self.num_updates += 1

    def schedule(self) -> float:
        """Advance the schedule, unless the update was skipped or the schedule follows a metric."""
        learning_rate = self._learning_rate()
        if not self._was_skipped and not self._steps_on_metrics:
            self._scheduler.step()
        self._was_skipped = False
        self.discard()
        return learning_rate

    def discard(self) -> None:
        """Clear all gradients."""
        self._engine.model.zero_grad(set_to_none=True)

    def _learning_rate(self) -> float:
        if self._steps_on_metrics:
            return float(self._optimizer.param_groups[0]["lr"])
        return float(self._scheduler.get_last_lr()[0])


def count_targets(example: Example) -> int:
    """Trained tokens of an example: labels that are not ignored, but for each document's first."""
    return int(np.count_nonzero(_is_target(example)))


def _is_target(example: Example) -> NDArray[np.bool_]:
    is_target: NDArray[np.bool_] = np.asarray(example.labels) != IGNORE_INDEX
    if len(example.weights):
        is_target &= np.asarray(example.weights) > 0
    starts = np.cumsum((0, *example.seq_lengths[:-1]))
    if len(is_target):
        is_target[starts] = False  # nothing within the document predicts its first token
    return is_target


def is_weighted(examples: Sequence[Example]) -> bool:
    """Whether any of the examples brings weights."""
    return any(len(example.weights) for example in examples)


def sum_of_weights(examples: Sequence[Example]) -> float:
    """What the targets of the examples weigh together: what the sum of their losses is divided by."""
    return float(
        sum(
            np.asarray(example.weights, np.float64)[_is_target(example)].sum()
            if len(example.weights)
            else count_targets(example)
            for example in examples
        )
    )


def micro_batches(engine: Engine, examples: Sequence[Example], keys: Sequence[int]) -> Iterator[MicroBatch]:
    """Cut examples as the plan says."""
    lengths = [len(example.input_ids) for example in examples]
    padded = engine.plan.layout is Layout.PADDED
    if padded:  # a packed block's documents become rows of their own
        lengths = [max(example.seq_lengths or (len(example.input_ids),)) for example in examples]
    cut: Callable[[Sequence[int], int], list[list[int]]] = cut_padded if padded else cut_flat
    for group in cut(lengths, engine.plan.micro_batch_tokens):
        yield make_micro_batch([examples[index] for index in group], [keys[index] for index in group], engine.device)


def not_finite(step: int, loss: float, keys: Sequence[int]) -> NonFiniteError:
    """The error of a step whose loss is not finite, naming its rows.

    Args:
        step: counted from 1.
        loss: what it was.
        keys: the rows of its batch.
    """
    return NonFiniteError(
        f"the loss of step {step} is {loss}: {_rows(keys)}. Look at these rows, lower learning_rate, or set "
        "max_grad_norm."
    )


def _rows(keys: Sequence[int]) -> str:
    """For messages: which rows a batch is made of."""
    shown = ", ".join(str(key) for key in keys[:16])
    more = f" and {len(keys) - 16} more" if len(keys) > 16 else ""
    return f"rows {shown}{more} (from 0) of the prepared train_dataset"
