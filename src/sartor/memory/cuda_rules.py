"""What a CUDA device does otherwise, on fake CPU tensors: autograd on fake CUDA tensors needs a CUDA build.

By reading torch's sources, unmeasured: a prediction that used it says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_HALF = (torch.bfloat16, torch.float16)

FLOAT32_OPERATIONS = frozenset(
    {
        F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.softplus, F.cosine_similarity,
        torch.layer_norm, torch.softmax, torch.log_softmax, torch.pow, torch.exp, torch.log, torch.rsqrt,
        torch.reciprocal,
        torch.cumsum, torch.cumprod, torch.sum, torch.prod, torch.norm,
        torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.pow, torch.Tensor.exp, torch.Tensor.log,
        torch.Tensor.rsqrt, torch.Tensor.reciprocal, torch.Tensor.cumsum, torch.Tensor.cumprod, torch.Tensor.sum,
        torch.Tensor.prod, torch.Tensor.norm, torch.Tensor.__pow__,
    }
)  # fmt: skip
"""That autocast takes to float32 on CUDA and not on a CPU (autocast_mode.h, AT_FORALL_FP32)."""


class CudaAutocast(TorchFunctionMode):
    """Within it, autocast on CPU tensors casts to float32 what CUDA's would."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast 16-bit arguments of a listed function, and call it."""
        kwargs = kwargs or {}
        if func in FLOAT32_OPERATIONS and torch.is_autocast_enabled("cpu"):
            args = tuple(_wide(argument) for argument in args)
            kwargs = {name: _wide(argument) for name, argument in kwargs.items()}
        return func(*args, **kwargs)


def _wide(argument: Any) -> Any:
    return argument.float() if isinstance(argument, torch.Tensor) and argument.dtype in _HALF else argument
