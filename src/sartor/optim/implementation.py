"""Which of torch's implementations an optimizer's step takes: the same update, equal up to rounding."""

from __future__ import annotations

import torch

from sartor.errors import ConfigurationError


def flags(implementation: str) -> dict[str, bool]:
    """torch's arguments for an implementation."""
    return {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def set_implementation(optimizer: torch.optim.Optimizer, implementation: str | None) -> None:
    """From here on the optimizer's step is of this kind.

    Args:
        optimizer: one of torch's own.
        implementation: "fused", "foreach" or "for-loop"; None: it is left as it is.

    Raises:
        ConfigurationError: it has no such implementation.
    """
    if implementation is None:
        return
    wanted = flags(implementation)
    for group in optimizer.param_groups:
        for flag, value in wanted.items():
            if flag in group:
                group[flag] = value
            elif value:
                raise ConfigurationError(
                    f"optimizer_implementation={implementation!r}: torch has no such {type(optimizer).__name__}; leave "
                    "it out."
                )
    for flag, value in wanted.items():
        if flag in optimizer.defaults:
            optimizer.defaults[flag] = value
