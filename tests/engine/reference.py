"""The truth that the engine is held to: float64, one document at a time, plain logits, the model's own attention.

Nothing of the engine is used here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from sartor.records import IGNORE_INDEX, Example


def in_double(model: Any) -> Any:
    """A copy in float64 whose experts run one at a time (the grouped kernel takes no float64)."""
    double = copy.deepcopy(model).double()
    inner = double.get_base_model() if hasattr(double, "get_base_model") else double
    inner.set_experts_implementation("eager")
    return double


def loss_sum(model: Any, examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
    """Summed loss and number of targets; `labels[t]` is predicted by token t - 1 of the same document."""
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for example in examples:
        ids = torch.tensor([list(example.input_ids)])
        labels = torch.tensor(list(example.labels))[1:]
        is_target = labels != IGNORE_INDEX
        if not is_target.any():
            continue
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits[is_target], labels[is_target], reduction="sum")
        count += int(is_target.sum())
    return total, count


def gradients(model: Any, examples: Sequence[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss per target and its gradient for each trained parameter, in float64."""
    double = in_double(model)
    total, count = loss_sum(double, examples)
    (total / count).backward()
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in double.named_parameters()
        if parameter.requires_grad
    }
    return float(total.detach() / count), found


def worst_difference(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], floor: float) -> tuple[float, str]:
    """Largest norm of a difference over the norm of the truth, and whose.

    Args:
        floor: share of the norm of *all* gradients below which a parameter's own norm is not divided by: a gradient
            that is zero by symmetry, such as a key's bias, is rounding divided by rounding otherwise.
    """
    assert found.keys() == truth.keys()
    whole = torch.stack([gradient.norm() for gradient in truth.values()]).norm()
    differences = {
        name: float((found[name].double() - gradient).norm() / gradient.norm().clamp(min=float(floor * whole)))
        for name, gradient in truth.items()
    }
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst], worst
