"""Evaluation: sums over the targets of a data set, so that its loss is the same for any batch size and any cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.engine.step import Engine
from sartor.errors import DataError
from sartor.records import Example, LossSums
from sartor.run.cutting import micro_batches
from sartor.run.examples import all_examples, device_batches
from sartor.run.recover import Recovery


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one pass over a data set found."""

    sums: LossSums
    num_examples: int
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean over all targets of the data set, by their weights."""
        return self.sums.mean_loss

    @property
    def entropy(self) -> float:
        """Mean over all targets, in nats."""
        return float(self.sums.entropy_sum) / self.sums.num_targets

    @property
    def token_accuracy(self) -> float:
        """Share of targets that were the model's first choice."""
        return float(self.sums.num_correct) / self.sums.num_targets

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(
    engine: Engine,
    batches: Iterable[Sequence[Example]],
    *,
    name: str,
    on_batch: Callable[[], None] = lambda: None,
    recovery: Recovery | None = None,
) -> Evaluation:
    """One pass without gradients, in micro-batches of the plan's size: never more memory than training.

    Where memory runs out all the same, what was being measured is measured again, with less at once.

    Args:
        engine: whose model is evaluated.
        batches: device batches; several small ones go through the model together.
        name: of the data set, for messages.
        on_batch: called once per device batch, after it went through.
        recovery: the run's; None: one of its own.

    Raises:
        DataError: the data set has no target.
        OutOfMemoryError: one document alone does not fit.
    """
    recovery = recovery or Recovery(engine)
    measure = _Measure(engine, recovery)
    was_training = engine.model.training
    engine.model.eval()
    total: LossSums | None = None
    num_examples = num_tokens = 0
    waiting: list[Example] = []
    num_waiting = 0

    def flush() -> None:
        nonlocal total, num_waiting
        found = recovery.retry(f"the evaluation of {name}", lambda: measure.sums(waiting), measure.less)
        if found is not None:
            total = found if total is None else total + found
        waiting.clear()
        for _ in range(num_waiting):
            on_batch()
        num_waiting = 0

    try:
        for batch in batches:
            waiting.extend(batch)
            num_waiting += 1
            num_examples += len(batch)
            num_tokens += sum(len(example.input_ids) for example in batch)
            if sum(len(example.input_ids) for example in waiting) >= measure.tokens:
                flush()
        if waiting:
            flush()
    finally:
        engine.model.train(was_training)
    if total is None:
        raise DataError(f"{name}: no row has a target, so there is nothing to evaluate.")
    return Evaluation(total, num_examples, num_tokens)


def evaluate_dataset(
    recovery: Recovery, dataset: Any, batch_size: int, *, name: str, on_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """`evaluate` a prepared data set, or a stream, in its own order, by the engine of a recovery."""
    batches = device_batches(all_examples(dataset), batch_size)
    return evaluate(recovery.engine, batches, name=name, on_batch=on_batch, recovery=recovery)


class _Measure:
    """Sums of some examples under the plan as it is at that moment."""

    def __init__(self, engine: Engine, recovery: Recovery) -> None:
        self._engine = engine
        self._recovery = recovery
        self._last = (0, 1)
        """Tokens and documents of the micro-batch that was begun last."""

    @property
    def tokens(self) -> int:
        """That go through the model at once: never more than training was foreseen to have at once.

        That is less than `micro_batch_tokens` where an optimizer batch is.
        """
        plan = self._engine.plan
        return plan.evaluation_tokens or min(plan.micro_batch_tokens, plan.pass_tokens or plan.micro_batch_tokens)

    def sums(self, examples: Sequence[Example]) -> LossSums | None:
        """None where they have no target."""
        total: LossSums | None = None
        guard = self._recovery.guard
        for micro in micro_batches(self._engine, examples, range(len(examples)), self.tokens):
            if not micro.num_targets:
                continue
            self._last = micro.num_tokens, len(micro.document_lengths)
            guard.before(micro.num_tokens, trains=False)
            sums = self._engine.measure(micro)
            guard.after(micro.num_tokens, trains=False)
            total = sums if total is None else total + sums
        return total

    def less(self) -> str | None:
        """A remedy: the same once more, then finer."""
        return self._recovery.try_again() or self._recovery.evaluate_with_less(*self._last)
