"""What operators return whose result depends on values: fake tensors have none.

The engine reads a few values back (the gradient's norm, an optimizer's step count), and asks which targets were the
model's first choice.  For memory it only matters how many numbers come back, and the answer here is the largest.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten


def largest_answer(func: Any, args: tuple[Any, ...]) -> Any:
    """The answer that takes the most memory; NotImplemented for operators that need none."""
    if func is _aten._local_scalar_dense.default:
        dtype = args[0].dtype
        return True if dtype == torch.bool else (1.0 if dtype.is_floating_point else 1)
    if func is _aten.nonzero.default:
        tensor = args[0]
        return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)
    if func is _aten.equal.default:
        return True
    if func is _aten._grouped_mm.default:
        return _grouped_product(args[0], args[1], args[2])
    return NotImplemented


def _grouped_product(left: torch.Tensor, right: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """The products of E experts; torch's own shape function takes bfloat16 alone, while a CPU's kernel takes more."""
    if left.dim() == 2 and right.dim() == 2:
        return left.new_empty((ends_E.shape[0], left.shape[0], right.shape[1]))
    return left.new_empty((left.shape[-2], right.shape[-1]))
