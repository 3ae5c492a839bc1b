"""Two optimizers compared: parameters and states, bit for bit."""

from __future__ import annotations

import torch


def values(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters and states, in order."""
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [optimizer.state[parameter] for parameter in found if parameter in optimizer.state]
    return [*found, *(state[name] for state in states for name in sorted(state) if torch.is_tensor(state[name]))]


def assert_equal(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Assert that parameters and states are the same."""
    mine, theirs = values(one), values(other)
    assert len(mine) == len(theirs)
    for left, right in zip(mine, theirs, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert torch.equal(left, right)
