"""The stepper that drives the engine: cuts, gradients, clipping, update, schedule.

In: optimizer batches of examples.  Out: step results.  What it keeps true: gradients are of the sum over the batch's
targets divided by their number, or by the sum of their weights, whatever the cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from sartor.engine.step import Engine
from sartor.errors import DataError, NonFiniteError
from sartor.optim.transaction import planned_update
from sartor.ranks import ALONE, Ranks
from sartor.records import LossSums, StepResult
from sartor.run.cutting import keyed_micro_batches
from sartor.run.loop import OptimizerBatch
from sartor.run.recover import Recovery
from sartor.run.state import generator_states, restore_generators

_OPTIMIZER_ADVICE = (
    "its states go with the parameters. Choose an optimizer that keeps less (optim='adafactor'), train an adapter "
    "(peft_config), or use a machine with more memory."
)


class EngineStepper:
    """Steps with our own engine."""

    def __init__(self, engine: Engine, updater: Updater, ranks: Ranks = ALONE) -> None:
        """Args:
        engine: computes.
        updater: steps.
        ranks: the processes that have the other shares of each optimizer batch.
        """
        self._engine = engine
        self._updater = updater
        self._ranks = ranks

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        """See `loop.Stepper`.  Where memory runs out, the batch is begun anew, with less at once.

        Raises:
            DataError: the batch has no target.
            NonFiniteError: its loss is not finite, and the policy is to stop.
            OutOfMemoryError: one document alone does not fit.
        """
        engine, updater, ranks = self._engine, self._updater, self._ranks
        if ranks.total(batch.num_targets) == 0:
            raise DataError(
                f"an optimizer batch has no target at all: {updater.policy.where(batch.keys)}. Nothing in it can be "
                "trained: drop rows without targets, or make the batch larger."
            )
        updater.steps.begin()
        engine.model.train()
        before = generator_states()
        recovery = updater.recovery
        attempt = _Attempt(engine, updater, batch, ranks.total(batch.total_weight), int(ranks.total(batch.num_tokens)))

        def undo() -> None:
            updater.discard()
            restore_generators(before)

        def less() -> str | None:
            return recovery.try_again() or recovery.train_with_less(attempt.last_tokens, attempt.last_documents)

        parts = recovery.retry("forward or backward", attempt.run, less, undo)
        total = parts[0][1]
        for _, sums in parts[1:]:
            total = total + sums
        if ranks.count > 1:
            total = self._over_all_ranks(total)
        result = StepResult(total, None, batch.num_tokens, len(parts), batch.keys)
        if not torch.isfinite(total.loss_sum):
            culprits = [key for keys, sums in parts if not torch.isfinite(sums.loss_sum) for key in keys]
            return updater.refuse(result, "the loss", float(total.loss_sum), culprits or batch.keys)
        return result

    def _over_all_ranks(self, sums: LossSums) -> LossSums:
        """Gradients and sums of the whole optimizer batch, the same in every process."""
        for parameter in self._engine.model.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._ranks.sum(own)
        weights = sums.weight_sum
        return LossSums(
            self._ranks.sum(sums.loss_sum),
            self._ranks.sum(sums.entropy_sum),
            self._ranks.sum(sums.num_correct),
            int(self._ranks.total(sums.num_targets)),
            # weighted everywhere as soon as one share is
            self._ranks.sum(torch.full_like(sums.loss_sum, sums.num_targets) if weights is None else weights),
        )

    def clip(self, result: StepResult) -> StepResult:
        """See `loop.Stepper`.

        Raises:
            NonFiniteError: the gradient is not finite, and the policy is to stop.
        """
        return self._updater.clipped(result)

    def update(self) -> None:
        """See `loop.Stepper`."""
        self._updater.update()

    def schedule(self) -> float:
        """See `loop.Stepper`."""
        return self._updater.schedule()

    def discard(self) -> None:
        """See `loop.Stepper`."""
        self._updater.discard()


class _Attempt:
    """Forward and backward of one optimizer batch, from its start, under the plan as it is at that moment."""

    def __init__(
        self,
        engine: Engine,
        updater: Updater,
        batch: OptimizerBatch,
        total_weight: float,
        num_tokens: int,
    ) -> None:
        """`total_weight`, `num_tokens`: of the whole optimizer batch, over all ranks."""
        self._engine = engine
        self._updater = updater
        self._batch = batch
        self._total_weight = total_weight
        self._num_tokens = num_tokens
        self.last_tokens = 0
        """Of the micro-batch that was begun last, its tokens: where the run ended early, the one that did not fit."""
        self.last_documents = 0
        """And its documents."""

    def run(self) -> list[tuple[tuple[int, ...], LossSums]]:
        """Examples' keys and sums of each micro-batch; gradients are added to the parameters'."""
        updater = self._updater
        guard = updater.recovery.guard
        parts = []
        for keys, micro in keyed_micro_batches(self._engine, self._batch.examples, self._batch.keys):
            updater.pause()
            self.last_tokens, self.last_documents = micro.num_tokens, len(micro.document_lengths)
            guard.before(micro.num_tokens, trains=True)
            sums = self._engine.backward(
                micro,
                batch_targets=self._total_weight,
                batch_tokens=self._num_tokens,
                loss_scale=updater.loss_scale,
                step=updater.steps.done,
            )
            guard.after(micro.num_tokens, trains=True)
            parts.append((keys, sums))
        return parts


@dataclass(frozen=True, slots=True)
class NonFinitePolicy:
    """What happens to an optimizer batch whose loss or gradient is not finite."""

    skips: bool = False
    """True: it is not stepped on, and counted.  False: the run stops."""
    where: Callable[[Sequence[int]], str] = lambda keys: rows_by_number(keys)
    """Names rows, given their indices in the prepared data set."""
    say: Callable[[str], None] = lambda message: None


class Updater:
    """Clipping, update, loss scale and schedule: what every stepper does after its gradients are there."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        engine: Engine,
        max_grad_norm: float,
        steps_on_metrics: bool,
        *,
        recovery: Recovery | None = None,
        policy: NonFinitePolicy | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._update: Any = planned_update(optimizer, engine.plan, seed=engine.settings.seed)
        self._update.settle()
        self.scheduler = scheduler
        self._engine = engine
        self._max_grad_norm = max_grad_norm
        self._steps_on_metrics = steps_on_metrics
        self.recovery = recovery or Recovery(engine)
        self.steps = self.recovery.steps
        """The run's counter, which this object alone moves on."""
        self.policy = policy or NonFinitePolicy()
        scaled = engine.compute_dtype == torch.float16
        self._scaler = torch.amp.GradScaler(engine.device.type) if scaled else None
        if self._scaler is not None:
            self._scaler.scale(torch.ones((), device=engine.device))  # it sets up its first scale when first used
        self._was_skipped = False
        self._skips = False
        self.pause: Callable[[], None] = lambda: None
        """Called between micro-batches: where an interrupt that has waited may be raised."""
        self.before_step: Callable[[], None] = lambda: None
        """Called before parameters and the optimizer's states change."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of it besides optimizer, schedule and steps."""
        return {"scaler": None if self._scaler is None else self._scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(dict(state["scaler"]))

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before their backward pass: 1 but in float16."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def states(self) -> list[torch.Tensor]:
        """That the optimizer has now."""
        states = self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]

    @contextmanager
    def rehearsed(self) -> Iterator[bool]:
        """While the block lasts, the optimizer has the states that its first update will make; then it is as before.

        Needs gradients.  Yields whether that could be done: not in float16, whose scale follows every update.
        """
        done = False
        try:
            done = self._scaler is None and self._update.rehearse()
            yield done
        finally:
            if done:
                self._update.forget()

    def clip(self) -> float:
        """Unscale, measure the norm, clip."""
        if self._scaler is not None:
            self._scaler.unscale_(self._update)
        return self._engine.gradient_norm(self._max_grad_norm)

    def clipped(self, result: StepResult) -> StepResult:
        """`clip` with its norm in the result; a norm that is not finite follows the policy.

        In float16 gradients may overflow: the update is then left out and the scale is lowered, as ever.

        Raises:
            NonFiniteError: it is not finite, and the policy is to stop.
        """
        if result.is_skipped:
            return result
        norm = self.clip()
        result = replace(result, grad_norm=norm)
        if self._scaler is None and not math.isfinite(norm):
            return self.refuse(result, "the loss is finite, and the gradient's norm", norm, result.keys)
        return result

    def refuse(self, result: StepResult, what: str, value: float, keys: Sequence[int]) -> StepResult:
        """A batch that must not be stepped on: skipped and counted, or the end of the run.

        Args:
            result: of the batch.
            what: is not finite: "the loss".
            value: what it is.
            keys: rows that may have caused it.

        Raises:
            NonFiniteError: the policy is to stop.
        """
        steps = self.steps
        if not self.policy.skips:
            raise not_finite(steps.current, what, value, self.policy.where(keys))
        self.discard()
        self._skips = True
        self.policy.say(
            f"step {steps.current} is skipped: {what} is {value} ({self.policy.where(keys)}). Skipped so far: "
            f"{steps.num_skipped + 1}."
        )
        return replace(result, is_skipped=True)

    def update(self) -> None:
        """One optimizer step; in float16 it is skipped where gradients overflowed, and the scale is lowered."""
        is_skipped, self._skips = self._skips, False
        if is_skipped:
            self._was_skipped = True
        else:
            self.before_step()
            self.recovery.retry(
                "the optimizer's step",
                self._apply,
                lambda: self._update.smaller() or self.recovery.try_again(),
                advice=_OPTIMIZER_ADVICE,
            )
        self.steps.finish(is_skipped=is_skipped)

    def _apply(self) -> None:
        self._update.number = self.steps.done
        self.recovery.guard.allocate(self._update.needed_bytes(), "the states of the optimizer")
        if self._scaler is None:
            self._update.step()
            return
        before = self._scaler.get_scale()
        self._scaler.step(self._update)
        self._scaler.update()
        self._was_skipped = self._scaler.get_scale() < before

    def schedule(self) -> float:
        """Advance the schedule, unless the update was skipped or the schedule follows a metric."""
        learning_rate = self._learning_rate()
        if not self._was_skipped and not self._steps_on_metrics:
            self.scheduler.step()
        self._was_skipped = False
        self.discard()
        return learning_rate

    def discard(self) -> None:
        """Clear all gradients."""
        self._skips = False
        self._engine.model.zero_grad(set_to_none=True)

    def _learning_rate(self) -> float:
        if self._steps_on_metrics:
            return float(self.optimizer.param_groups[0]["lr"])
        return float(self.scheduler.get_last_lr()[0])


def not_finite(step: int, what: str, value: float, rows: str) -> NonFiniteError:
    """The error of a step whose loss or gradient is not finite, naming its rows.

    Args:
        step: counted from 1.
        what: is not finite: "the loss".
        value: what it is.
        rows: those of its batch that may have caused it, in words.
    """
    return NonFiniteError(
        f"{what} of step {step} is {value}: {rows}. Look at these rows, lower learning_rate, or set max_grad_norm. "
        "on_non_finite='skip' leaves such batches out, and counts them."
    )


def rows_by_number(keys: Sequence[int]) -> str:
    """For messages: which rows a batch is made of, where nothing more is known than their numbers."""
    shown = ", ".join(str(key) for key in keys[:16])
    more = f" and {len(keys) - 16} more" if len(keys) > 16 else ""
    return f"rows {shown}{more} (from 0) of the prepared train_dataset"
