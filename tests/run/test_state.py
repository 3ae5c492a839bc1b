"""What is packed comes back the same, bit for bit; what cannot be packed is refused by its place."""

import json
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.errors import ConfigurationError
from sartor.run import state


def there_and_back(value: Any) -> Any:
    tree, tensors = state.pack(value, "it")
    return state.unpack(json.loads(json.dumps(tree, allow_nan=False)), tensors)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@given(values)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_what_json_lacks_comes_back() -> None:
    value = {
        "inf": math.inf,
        "down": -math.inf,
        3: Counter({5: 2}),
        "dtype": torch.bfloat16,
        "$": 1,
        "n": np.float64(2),
    }
    back = there_and_back(value)
    assert back == value
    assert type(back[3]) is Counter
    assert math.isnan(there_and_back(math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_tensors_keep_dtype_shape_and_bits(dtype: torch.dtype) -> None:
    tensor = (torch.arange(6).reshape(2, 3) % 2).to(dtype)
    back = there_and_back({"state": {0: {"exp_avg": tensor, "step": torch.tensor(3.0)}}})["state"][0]
    assert back["exp_avg"].dtype == dtype
    assert torch.equal(back["exp_avg"], tensor)
    assert back["step"].shape == ()


def test_every_generator_goes_on_where_it_was() -> None:
    def draw() -> tuple[Any, ...]:
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            float(torch.rand(())),
            float(torch.randn(())),
        )

    draw()
    states = there_and_back(state.generator_states())
    first = draw()
    assert draw() != first
    state.restore_generators(states)
    assert draw() == first


@pytest.mark.parametrize(
    "value", [object(), {"a": [1, {2}]}, torch.nn.Buffer(torch.zeros(1)), {(1, 2): 3}, {1: 2, "1": 3}]
)
def test_what_cannot_be_expressed_is_refused_by_name(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = torch.Tensor._make_subclass(type("Quantized", (torch.Tensor,), {}), value)
    with pytest.raises(ConfigurationError, match=r"^the state of Fancy has "):
        state.pack({"deep": value}, "the state of Fancy")
