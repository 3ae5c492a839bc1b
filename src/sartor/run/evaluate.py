"""Evaluation: sums over the targets of a data set, so that its loss is the same for any batch size and any cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sartor.engine.step import Engine
from sartor.errors import DataError
from sartor.records import Example, LossSums
from sartor.run.stepper import micro_batches


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
) -> Evaluation:
    """One pass without gradients, in micro-batches of the plan's size: never more memory than training.

    Args:
        batches: device batches; several small ones go through the model together.
        name: of the data set, for messages.
        on_batch: called once per device batch, after it went through.

    Raises:
        DataError: the data set has no target.
    """
    was_training = engine.model.training
    engine.model.eval()
    total: LossSums | None = None
    num_examples = num_tokens = 0
    waiting: list[Example] = []
    num_waiting = 0

    def flush() -> None:
        nonlocal total, num_waiting, num_tokens
        for micro in micro_batches(engine, waiting, range(len(waiting))):
            num_tokens += micro.num_tokens
            if micro.num_targets:
                sums = engine.measure(micro)
                total = sums if total is None else total + sums
        waiting.clear()
        for _ in range(num_waiting):
            on_batch()
        num_waiting = 0

    try:
        for batch in batches:
            waiting.extend(batch)
            num_waiting += 1
            num_examples += len(batch)
            if sum(len(example.input_ids) for example in waiting) >= engine.plan.micro_batch_tokens:
                flush()
        if waiting:
            flush()
    finally:
        engine.model.train(was_training)
    if total is None:
        raise DataError(f"{name}: no row has a target, so there is nothing to evaluate.")
    return Evaluation(total, num_examples, num_tokens)
