"""Rounding at random: the mean is the number itself, what bfloat16 has stays, and the same key gives the same bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.engine import rounding
from sartor.engine.rounding import LARGEST, norm_of, round_stochastically_

DRAWS = 20_000


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers around a float32 one: towards zero, and away from it."""
    bits = torch.tensor([value]).view(torch.int32)
    low = bits & -65_536
    return float(low.view(torch.float32)), float((low + 65_536).view(torch.float32))


@settings(max_examples=40, deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.integers(0, 2**40))
def test_the_mean_of_many_roundings_is_the_number(value: float, key: int) -> None:
    rounded = round_stochastically_(torch.full((DRAWS,), value), (key,))
    near, far = neighbours(value)
    assert set(rounded.unique().tolist()) <= {near, far}
    share = (value - near) / (far - near)
    found = float((rounded == far).double().mean())
    assert abs(found - share) <= 6 * math.sqrt(share * (1 - share) / DRAWS) + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.integers(0, 100))
def test_what_bfloat16_has_stays_and_everything_else_becomes_one_of_its_numbers(values: list[float], key: int) -> None:
    exact = torch.tensor(values).bfloat16().float()
    again = round_stochastically_(exact.clone(), (key,))
    assert torch.equal(again.nan_to_num(nan=7.0), exact.nan_to_num(nan=7.0))
    given_values = torch.tensor(values)
    rounded = round_stochastically_(given_values.clone(), (key,))
    assert torch.equal(rounded.bfloat16().float().nan_to_num(nan=7.0), rounded.nan_to_num(nan=7.0))
    assert torch.equal(rounded.isfinite(), given_values.isfinite())
    assert torch.equal(rounded.isnan(), given_values.isnan())
    is_number = ~rounded.isnan()
    assert torch.equal(rounded[is_number].signbit(), given_values[is_number].signbit())


def test_the_largest_numbers_never_become_infinite_and_every_kind_of_nan_stays_one() -> None:
    beyond = torch.full((1_000,), torch.finfo(torch.float32).max)
    assert set(round_stochastically_(beyond, (1,)).tolist()) == {LARGEST}
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    for key in range(20):
        assert bool(round_stochastically_(patterns.clone().view(torch.float32), (key,)).isnan().all())


def test_a_key_gives_the_same_bits_and_another_gives_others_beside_the_global_generator() -> None:
    values = torch.rand(1_000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first = round_stochastically_(values.clone(), (1, 2, 3))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, round_stochastically_(values.clone(), (1, 2, 3)))
    for other in ((1, 2, 4), (1, 3, 3), (2, 2, 3)):
        assert not torch.equal(first, round_stochastically_(values.clone(), other))


def test_the_norm_of_bfloat16_gradients_is_a_float32_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "NORM_VALUES", 100)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).bfloat16() for shape in ((30, 40), (7,), ())]
    expected = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
    assert float(norm_of(gradients)) == pytest.approx(expected, rel=1e-6)  # in bfloat16 it would be off by 1e-3
    wide = [one.float() for one in gradients]
    assert float(norm_of(wide)) == float(torch.nn.utils.get_total_norm(wide))
