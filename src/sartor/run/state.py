"""What a run is made of, as JSON and tensors, and every random generator it draws from.

In: nested dictionaries, lists and tuples of numbers, texts and tensors, as `state_dict()` returns them.  Out: a tree
that JSON holds, and tensors by name.  What it keeps true: unpacking gives back the same values, types and dtypes, bit
for bit; what cannot be expressed so is refused by its place, never dropped.
"""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sartor import device
from sartor.errors import ConfigurationError

_TAG = "$"
"""Key of a JSON object that stands for something JSON does not have."""


def pack(value: Any, what: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take a nested value apart: (JSON tree, tensors by name).  Tensors are not copied.

    Args:
        value: of None, bool, int, float, str, list, tuple, dict, tensors, arrays, dtypes.
        what: its name in messages: "the state of Adafactor".

    Raises:
        ConfigurationError: something else is in it; names where.

    Example: `{"lr": 0.1, "betas": (0.9, inf), "step": tensor(3.)}` becomes `{"lr": 0.1, "betas": {"$": "tuple",
    "items": [0.9, {"$": "float", "value": "inf"}]}, "step": {"$": "tensor", "name": "/step"}}` and
    `{"/step": tensor(3.)}`.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _packed(value, "", what, tensors), tensors


def unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put together what `pack` took apart.

    Raises:
        ValueError: it is nothing that `pack` makes; says what.
    """
    try:
        return _unpacked(tree, tensors)
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"a value is not as it is written: {error}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unpacked(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get(_TAG)
    if kind is None:
        return {key: _unpacked(part, tensors) for key, part in tree.items()}
    if kind == "tensor":
        return tensors[tree["name"]]
    if kind == "array":
        words, dtype = tensors[tree["name"]].numpy(), np.dtype(tree["dtype"])
        if dtype.kind not in "biufc" or dtype.itemsize != words.itemsize:
            raise ValueError(f"{tree['name']} is no array of {dtype}")
        return words.view(dtype)
    if kind == "float":
        return float(tree["value"])
    if kind == "dtype":
        dtype = getattr(torch, tree["value"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{tree['value']!r} is no dtype")
        return dtype
    if kind not in ("tuple", "counter", "dict"):
        raise ValueError(f"{kind!r} is no kind of value")
    items = [_unpacked(part, tensors) for part in tree["items"]]
    if kind == "tuple":
        return tuple(items)
    return Counter(dict(items)) if kind == "counter" else dict(items)


def _packed(value: Any, place: str, what: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.generic):  # numbers that a schedule's own arithmetic made
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: "float", "value": repr(float(value))}
    if isinstance(value, bool | int):
        return int(value) if not isinstance(value, bool) else value
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        tensors[place] = value.detach()
        return {_TAG: "tensor", "name": place}
    if type(value) is np.ndarray:
        signed = np.ascontiguousarray(value).view(f"i{value.dtype.itemsize}")  # torch has no unsigned arithmetic
        tensors[place] = torch.from_numpy(signed.copy())
        return {_TAG: "array", "name": place, "dtype": value.dtype.str}
    if isinstance(value, torch.dtype):
        return {_TAG: "dtype", "value": str(value).removeprefix("torch.")}
    if type(value) in (list, tuple):
        items = [_packed(part, f"{place}/{number}", what, tensors) for number, part in enumerate(value)]
        return items if type(value) is list else {_TAG: "tuple", "items": items}
    if type(value) in (dict, OrderedDict, Counter):
        return _packed_mapping(value, place, what, tensors)
    raise ConfigurationError(
        f"{what} has a {type(value).__module__}.{type(value).__qualname__} at {place or '/'}, which can be written "
        "neither as JSON nor as a plain tensor: choose another optimizer or schedule, or set save_only_model=True to "
        "save the model alone."
    )


def _packed_mapping(value: Mapping[Any, Any], place: str, what: str, tensors: dict[str, torch.Tensor]) -> Any:
    parts = [(key, _packed(part, f"{place}/{key}", what, tensors)) for key, part in value.items()]
    if type(value) is Counter:
        return {_TAG: "counter", "items": [[key, part] for key, part in parts]}
    if all(type(key) is str for key, _ in parts) and _TAG not in value:
        return dict(parts)
    if not all(type(key) in (str, int) for key, _ in parts):
        raise ConfigurationError(f"{what} has keys at {place or '/'} that are neither text nor whole numbers.")
    if len({str(key) for key, _ in parts}) < len(parts):
        raise ConfigurationError(f"{what} has keys at {place or '/'} that look alike as text.")
    return {_TAG: "dict", "items": [[key, part] for key, part in parts]}


# --- random generators ---------------------------------------------------------------------------------------------


def generator_states() -> dict[str, Any]:
    """The state of every global random generator: Python's, numpy's, torch's, and of each GPU in use."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        **device.generator_states(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put every generator back to what `generator_states` saw; GPUs that are no longer there are left out."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    device.restore_generators(states)
