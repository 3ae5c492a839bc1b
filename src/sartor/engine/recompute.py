"""Activations that are computed again in the backward pass rather than kept: of whole layers, or only the cheap ones.

In: a transformers model and a plan.  Out: the model's own checkpointing, set accordingly.  What it keeps true:
gradients are those without recomputation, bit for bit: what is computed again runs the same kernels on the same
numbers, in the same state of the random generators.

What is cheap takes few operations for each value that keeping it would hold: norms, activation functions, rotary
embeddings, casts, sums, dropout, an adapter's way back from its rank, attention scores.  Kept are results of matrix
products and of attention kernels.  Example, a gated MLP: x, gate(x) and up(x) are kept; silu(gate(x)) and its product
with up(x), as large as each of them, are made again.

torch's `create_selective_checkpoint_contexts` does the same, but for two things: of results that a model writes to in
place (gpt_oss adds a bias so) it refuses some and misses others, and it keeps the last product, which nothing needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sartor import compat
from sartor.errors import ModelError
from sartor.records import Plan

_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1}
"""Matrix products, with the place of their left operand; the right one is the next."""
_BATCHED_PRODUCTS = {"aten::bmm": 0, "aten::baddbmm": 1}
_OTHER_PRODUCTS = frozenset(
    {"aten::convolution", "aten::_grouped_mm", "aten::_scaled_mm", "transformers::grouped_mm_fallback"}
)
_ATTENTION = frozenset(
    f"aten::{name}"
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_flash_attention_forward",
        "_efficient_attention_forward",
    )
)
_SAVE_NOTHING = frozenset(
    f"aten::{name}"
    for name in ("add", "add_", "view", "_unsafe_view", "t", "transpose", "unsqueeze", "squeeze", "expand", "detach")
)
"""Operators whose backward pass needs neither arguments nor result."""
WIDENED = 8
"""A product whose rows get more than so many times wider takes too few operations for each value to be worth keeping:
an adapter's second matrix, which comes from its rank."""


@contextmanager
def recomputation(inner: Any, plan: Plan) -> Iterator[None]:
    """Activation checkpointing as planned, and as it was afterwards.

    Args:
        inner: the transformers model, without its adapter's wrapper.
        plan: says what is recomputed.

    Raises:
        ModelError: the architecture cannot.
    """
    was_on = bool(inner.is_activation_checkpointing)
    if plan.gradient_checkpointing and not inner.supports_gradient_checkpointing:
        raise ModelError(
            f"{type(inner).__name__} cannot recompute activations; set gradient_checkpointing=False "
            "(more memory is needed then)."
        )
    set_recomputation(inner, plan)
    try:
        yield
    finally:
        _disable(inner)
        if was_on:
            _enable(inner)


def recomputed(plan: Plan) -> tuple[bool, int | None, bool]:
    """What of a plan `set_recomputation` looks at."""
    return plan.gradient_checkpointing, plan.recomputed_layers, plan.recomputes_cheap


def set_recomputation(inner: Any, plan: Plan) -> None:
    """Set a model's checkpointing.

    The first layers are those that are recomputed whole: backward comes to them last, when the others' activations are
    gone.
    """
    num_whole = plan.recomputed_layers
    if not plan.gradient_checkpointing:
        _disable(inner)
        return
    _enable(inner, keeps_products=plan.recomputes_cheap and num_whole == 0)
    if num_whole is None or (num_whole == 0 and plan.recomputes_cheap):
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = (module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer))
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < num_whole or plan.recomputes_cheap
        if number >= num_whole and plan.recomputes_cheap:
            compat.set_layer_checkpoint(layer, partial(checkpoint, use_reentrant=False, context_fn=_contexts))


def _enable(inner: Any, *, keeps_products: bool = False) -> None:
    how: dict[str, Any] = {"use_reentrant": False}
    if keeps_products:
        how["context_fn"] = _contexts
    inner.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    # transformers also makes the embeddings' output require gradients, which only reentrant checkpointing needs: with
    # an adapter it would cost a backward pass through the first layers, and the hook would outlive the run.
    inner.disable_input_require_grads()


def _disable(inner: Any) -> None:
    if inner.is_activation_checkpointing:
        inner.activation_checkpointing_disable()


def _contexts() -> tuple[_Keeping, _Returning]:
    """What one layer's forward pass and its second one run in."""
    results: list[_Result] = []
    return _Keeping(results), _Returning(results)


@dataclass(slots=True)
class _Result:
    """What one product gave, in the order in which a layer takes them."""

    parts: list[torch.Tensor | None] | None
    """None: it is taken again."""
    versions: tuple[int, ...]
    """What torch counts at each write."""
    is_single: bool

    @classmethod
    def of(cls, result: Any) -> _Result:
        parts = [result] if isinstance(result, torch.Tensor) else list(result)
        # With this key left in, torch counts writes to the result as writes to what is kept of it.
        with compat.uncounted_views():
            detached = [part.detach() if isinstance(part, torch.Tensor) else part for part in parts]
        return cls(detached, _versions(detached), isinstance(result, torch.Tensor))

    def take(self) -> Any:
        """The result, once; None where there is none, or it was written to since."""
        parts, self.parts = self.parts, None
        if parts is None or _versions(parts) != self.versions:
            return None
        return parts[0] if self.is_single else tuple(parts)


def _versions(parts: Iterable[Any]) -> tuple[int, ...]:
    return tuple(compat.num_writes(part) for part in parts if isinstance(part, torch.Tensor))


class _Keeping(TorchDispatchMode):
    """A layer's forward pass: results of products are kept."""

    def __init__(self, results: list[_Result]) -> None:
        super().__init__()
        self._results = results
        self._places: dict[int, int] = {}
        """Of results in memory: storage to number."""
        self._saves_nothing = False
        """Whether nothing after the last product is kept by autograd."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and keep what it gave where that is worth it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if is_kept(func, args, kwargs):
            kept = _Result.of(result)
            self._places |= {key: len(self._results) for key in _storages(kept.parts)}
            self._results.append(kept)
            self._saves_nothing = True
            return result
        # Questions about a tensor, of which fake ones are asked more, are no step of the computation.
        schema = compat.schema(func)
        is_asked = not isinstance(result, (torch.Tensor, tuple, list))
        self._saves_nothing &= is_asked or schema.name in _SAVE_NOTHING
        # What is written to is no longer what the product gave: it is taken again.  By storage, since torch's count of
        # writes does not reach from what a linear layer returns, an "unsafe view", to its product.
        if schema.is_mutable:
            for key in _storages(_written(func, args)):
                if key in self._places:
                    self._results[self._places[key]].parts = None
        return result

    def __exit__(self, *problem: Any) -> None:
        """The last product is not even taken again where nothing after it is needed: so it is not kept."""
        super().__exit__(*problem)
        if self._saves_nothing:
            self._results[-1].parts = None


class _Returning(TorchDispatchMode):
    """The second pass through a layer: products are not taken again, all else is."""

    def __init__(self, results: list[_Result]) -> None:
        super().__init__()
        self._results = results
        self._number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, or return what it gave."""
        kwargs = kwargs or {}
        if is_kept(func, args, kwargs):
            self._number += 1
            result = self._results[self._number - 1].take()
            if result is not None:
                return result
        return func(*args, **kwargs)


def _storages(parts: Iterable[Any] | None) -> Iterator[int]:
    return (compat.storage_key(part.untyped_storage()) for part in parts or () if isinstance(part, torch.Tensor))


def _written(function: Any, args: tuple[Any, ...]) -> Iterator[Any]:
    """The arguments that an operator writes to."""
    for argument, value in zip(compat.schema(function).arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from value if isinstance(value, (list, tuple)) else (value,)


def is_kept(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator's result is kept: it takes many operations for each of its values.

    Args:
        function: an operator of torch's dispatcher.
        args: its arguments; of tensors only shapes are looked at.
        kwargs: those given by name.
    """
    name = compat.schema(function).name
    if name in _PRODUCTS:
        left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
        return bool(right.shape[1] <= WIDENED * left.shape[1])
    if name in _BATCHED_PRODUCTS:  # scores of all pairs of tokens are larger than queries and keys together
        left, right = args[_BATCHED_PRODUCTS[name] : _BATCHED_PRODUCTS[name] + 2]
        return bool(left.shape[0] * left.shape[1] * right.shape[2] <= left.numel() + right.numel())
    if name in _ATTENTION:
        # A kernel that is not run again draws nothing: what is dropped after it would be drawn otherwise than before.
        return _dropout(function, args, kwargs) == 0
    return name in _OTHER_PRODUCTS


def _dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    for place, argument in enumerate(compat.schema(function).arguments):
        if argument.name == "dropout_p":
            return float(args[place] if place < len(args) else kwargs.get("dropout_p", 0.0))
    return 0.0
