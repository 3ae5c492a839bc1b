"""What kernels take for themselves while they run, beside their results: a table by operator, with its source.

In: an operator and its arguments.  Out: bytes.  A live set sees results only; what a kernel allocates and frees inside
is invisible to it, and is added from this table.  Every CPU rule is held to the profiler's count by
`tests/memory/test_kernel_rules.py`, but for attention in bfloat16 on a processor with AMX, which is bounded from above;
CUDA rules are unmeasured.

Not in the table: oneDNN's scratchpads for bfloat16 products on a CPU (some 200 kB each), which the margin covers.

`CudaAutocast` is what a CUDA device does otherwise, on fake CPU tensors: autograd on fake CUDA tensors needs a CUDA
build.  It is by reading torch's sources, unmeasured: a prediction that used it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sartor.compat import schema
from sartor.device import Kind, cpu_has_amx
from sartor.memory.tracker import ScratchRule

_aten = torch.ops.aten

_PACKED = 64
"""Keys, or values of a head, that torch packs together for AMX."""
_FLASH_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
_POINTWISE = frozenset(
    f"{name}{suffix}" for name in ("add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp") for suffix in ("", "_")
)


def rules(kind: Kind, num_threads: int = 1, packs: bool | None = None) -> ScratchRule:
    """The table of a kind of devices.

    Args:
        kind: whose kernels they are.
        num_threads: of a CPU: attention keeps a buffer for each.
        packs: whether a CPU's attention packs keys and values for AMX; None: if this processor has it.
    """
    table = _cpu(num_threads, cpu_has_amx() if packs is None else packs) if kind.is_host else _cuda()

    def scratch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        rule = table.get(schema(func).name.removeprefix("aten::"))
        return 0 if rule is None else rule(args, result)

    return scratch


_Rule = Callable[[tuple[Any, ...], Any], int]


def _cpu(num_threads: int, packs: bool) -> dict[str, _Rule]:
    def flash(args: tuple[Any, ...], result: Any) -> int:
        """Per thread a tile of scores, its output and its statistics (FlashAttentionKernel.cpp)."""
        query, key = args[0], args[1]
        rows, columns = _tile(query, key)
        packed = _packed_bytes(query, key, num_threads) if packs else 0
        return packed + num_threads * (_tiles_bytes(query, rows * columns) + 4 * rows * (2 + query.shape[3]))

    def flash_backward(args: tuple[Any, ...], result: Any) -> int:
        """Per thread two tiles and their sums; and the gradient once more where heads lie outside of tokens."""
        gradient, query, key = args[:3]
        rows, columns = _tile(query, key)
        copied = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.nbytes
        return copied + num_threads * (2 * _tiles_bytes(query, rows * columns) + 4 * rows)

    return {
        **dict.fromkeys(_POINTWISE, _converted_operands),
        "logsumexp": lambda args, result: args[0].nbytes,  # exp(x - max) as a whole (ReduceOps.cpp)
        "scatter_add": _float32_copies,
        "scatter_add_": _float32_copies,
        "convolution": lambda args, result: result.nbytes,  # oneDNN: the result in its own order first
        "_scaled_dot_product_flash_attention_for_cpu": flash,
        _FLASH_BACKWARD: flash_backward,
    }


def _cuda() -> dict[str, _Rule]:
    """By reading the kernels, unmeasured."""

    def flash_backward(args: tuple[Any, ...], result: Any) -> int:
        """dq in float32, and dk and dv of every query head where keys are grouped (flash_api.cpp)."""
        query, key = args[1], args[2]
        expanded = 0
        if key.shape[1] != query.shape[1]:
            expanded = 2 * query.shape[0] * query.shape[1] * key.shape[2] * key.shape[3] * key.element_size()
        return int(4 * query.numel() + expanded)

    return {
        "logsumexp": lambda args, result: args[0].nbytes,
        _FLASH_BACKWARD: flash_backward,
    }


def _converted_operands(args: tuple[Any, ...], result: Any) -> int:
    """A CPU's element-wise kernels work in one dtype: operands of another are converted as a whole first."""
    tensors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.dim() > 0]
    if len(tensors) < 2:
        return 0
    common = tensors[0].dtype
    for tensor in tensors[1:]:
        common = torch.promote_types(common, tensor.dtype)
    return sum(tensor.numel() * common.itemsize for tensor in tensors if tensor.dtype != common)


def _float32_copies(args: tuple[Any, ...], result: Any) -> int:
    """16-bit sums are taken in a float32 copy of the whole (ScatterGatherKernel.cpp)."""
    return 4 * args[0].numel() if args[0].dtype in (torch.bfloat16, torch.float16) else 0


def _tile(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of scores that a CPU's attention works on at a time."""
    rows = 256 if query.shape[2] >= 768 else 64 if query.shape[2] >= 192 else 32
    return min(rows, query.shape[2]), min(512, key.shape[2])


def _packed_bytes(query: torch.Tensor, key: torch.Tensor, num_threads: int) -> int:
    """Keys and values once more, for every query head and padded, and what each thread packs them in.

    An upper bound: where there is little to multiply with each, torch does not pack (FlashAttentionKernel.cpp).
    """
    batch, heads, _, size = query.shape
    if query.dtype == torch.float32 or size % _PACKED or key.shape[2] < _PACKED:
        return 0
    length = -(-key.shape[2] // _PACKED) * _PACKED
    each = _PACKED * (min(512, length) + size)
    return query.element_size() * (2 * batch * heads * length * size + num_threads * each)


def _tiles_bytes(query: torch.Tensor, num_values: int) -> int:
    """A tile in float32, and once more in the queries' dtype where that is another."""
    return num_values * (4 if query.dtype == torch.float32 else 4 + query.element_size())


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
