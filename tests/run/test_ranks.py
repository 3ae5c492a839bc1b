"""Two processes that share an optimizer batch, played by two threads: the gradients of one that has all of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from sartor.errors import DataError
from sartor.ranks import ALONE, Ranks
from sartor.records import Example, StepResult
from sartor.run.loop import OptimizerBatch
from sartor.run.stepper import EngineStepper
from tests.hf import tiny
from tests.run.test_stepper import engine_of, stepper_of


class Pair:
    """What two threads hand to each other."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.values: list[torch.Tensor] = [torch.zeros(()), torch.zeros(())]


class OneOfTwo(Ranks):
    """A thread as a process of two."""

    count = 2

    def __init__(self, number: int, pair: Pair) -> None:
        self.number = number
        self._pair = pair

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self._pair.values[self.number] = value
        self._pair.barrier.wait()
        total = self._pair.values[0] + self._pair.values[1]
        self._pair.barrier.wait()
        return total


def batch_of(examples: list[Example]) -> OptimizerBatch:
    return OptimizerBatch(tuple(examples), tuple(range(len(examples))), (len(examples),))


def together(shares: list[list[Example]]) -> list[tuple[StepResult, list[torch.Tensor]]]:
    """Results and gradients of two ranks with these shares of an optimizer batch."""
    pair = Pair()
    with ExitStack() as stack:
        steppers = []
        for number in range(2):
            engine = engine_of(tiny.make_model(), tokens=16)
            stack.enter_context(engine.running())
            _, updater = stepper_of(engine)
            steppers.append((engine, EngineStepper(engine, updater, OneOfTwo(number, pair))))

        def work(number: int) -> tuple[StepResult, list[torch.Tensor]]:
            engine, stepper = steppers[number]
            result = stepper.gradients(batch_of(shares[number]))
            return result, [p.grad for p in engine.model.parameters() if p.grad is not None]

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, range(2)))


def examples() -> list[Example]:
    ids = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15], [16, 17, 18, 19]]
    return [Example(one, one) for one in ids]


def test_two_shares_give_the_gradient_of_the_whole_batch() -> None:
    engine = engine_of(tiny.make_model(), tokens=16)
    with engine.running():
        alone, _ = stepper_of(engine)
        expected = alone.gradients(batch_of(examples()))
        gradients = [p.grad for p in engine.model.parameters() if p.grad is not None]
    found = together([examples()[:1], examples()[1:]])
    for result, ours in found:
        assert result.sums.num_targets == expected.sums.num_targets == 11
        assert result.sums.mean_loss == pytest.approx(expected.sums.mean_loss, abs=1e-6)
        for mine, whole in zip(ours, gradients, strict=True):
            assert (mine - whole).abs().max() < 1e-6
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_a_share_may_have_no_target_but_not_all_of_them() -> None:
    silent = Example([5, 6, 7], [-100] * 3)
    found = together([[silent], examples()])
    assert [result.sums.num_targets for result, _ in found] == [11, 11]
    with pytest.raises(DataError, match="no target"):
        together([[silent], [silent]])


def test_alone_nothing_is_changed() -> None:
    value = torch.ones(3)
    assert ALONE.sum(value) is value
    assert ALONE.total(0.1) == 0.1
    assert ALONE.is_first
