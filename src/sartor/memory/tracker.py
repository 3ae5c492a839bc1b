"""Which bytes are alive at every moment of a step: a live set of storages, fed by every operator that runs.

In: torch code run inside `with LiveSet(...)`, on fake tensors or on real ones.  Out: a log of births and deaths, from
which `stretches` makes the largest moment of each stretch of the step, by component.  What it keeps true: a storage is
counted once, from the operator that made it until nothing refers to it any more (autograd's saved tensors do), whatever
views of it come and go.

Example: `y = (x * 2).relu_()` is one birth (the product) and no second one: `relu_` returns the same storage.

Fake tensors have no values.  The engine reads a few values back (the gradient's norm, an optimizer's step count), and
asks which targets were the model's first choice.  For memory it only matters how many numbers come back, and
`largest_answer` gives the most.  `marking_layers` tells whoever measures a step, a `LiveSet` or a real step's `Trace`,
which layer begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from sartor.compat import storage_key
from sartor.memory.meta_model import layers_of
from sartor.memory.prediction import Component, Phase, Stretch

_DEVICE_OF = torch.ops.prim.device.default


@dataclass(slots=True)
class _Block:
    """One storage's life."""

    num_bytes: int
    birth_phase: Phase
    is_recomputed: bool
    """Made while autograd ran backward, but with gradients enabled: an activation that is computed again."""
    death_phase: Phase | None = None
    owner: Component | None = None
    is_elsewhere: bool = False
    """In other memory than the device's."""

    @property
    def component(self) -> Component:
        """What the block is, now that its whole life is known."""
        if self.owner is not None:
            return self.owner
        match self.birth_phase:
            case Phase.BUILD:
                return Component.PARAMETERS
            case Phase.LOSS:
                return Component.LOGITS
            case Phase.FORWARD if self.death_phase is not Phase.FORWARD:
                return Component.ACTIVATIONS
            case Phase.BACKWARD if self.is_recomputed:
                return Component.ACTIVATIONS
        return Component.TEMPORARIES


ScratchRule = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], int]
"""(operator, arguments, keyword arguments, result) to the bytes that its kernel takes beside its result while it
runs.
"""


class LiveSet(TorchDispatchMode):
    """Counts the bytes of all live storages that are made while it is active."""

    def __init__(self, scratch: ScratchRule | None = None, *, rounding_bytes: int = 1) -> None:
        """Start with nothing alive.

        Args:
            scratch: what operators take beside their results.
            rounding_bytes: of the device's allocator: each storage counts as a multiple of it.
        """
        super().__init__()
        self._scratch = scratch
        self._rounding_bytes = rounding_bytes
        self._alive: dict[int, tuple[weakref.ref[Any], _Block]] = {}
        self._log: list[tuple[_Block | None, int]] = []
        """(block, signed bytes); (None, bytes) is scratch, gone with its operator."""
        self._marks: list[tuple[int, Phase, int | None]] = [(0, Phase.BUILD, None)]
        """(place in the log, phase, layer) of each stretch's beginning."""
        self.phase = Phase.BUILD

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        self.phase = phase
        self._marks.append((len(self._log), phase, layer))

    def own(self, component: Component, tensors: Iterable[torch.Tensor | None], *, is_elsewhere: bool = False) -> None:
        """Say what these tensors are, for their whole life.

        Args:
            component: that they are.
            tensors: that are alive.
            is_elsewhere: they are in other memory than the device's, and do not count.
        """
        for tensor in tensors:
            if tensor is None:
                continue
            for storage in _storages(tensor):
                found = self._alive.get(storage_key(storage))
                if found is not None:
                    found[1].owner, found[1].is_elsewhere = component, is_elsewhere

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it made."""
        if func is _DEVICE_OF and isinstance(args[0], FakeTensor):  # most of all calls, and none of them allocates
            return args[0].fake_device
        kwargs = kwargs or {}
        result = largest_answer(func, args) if args and isinstance(args[0], FakeTensor) else NotImplemented
        if result is NotImplemented:
            result = func(*args, **kwargs)
        for tensor in _tensors(result):
            for storage in _storages(tensor):
                self._count(storage)
        if self._scratch is not None:
            num_bytes = self._scratch(func, args, kwargs, result)
            if num_bytes:
                self._log.append((None, num_bytes))
        return result

    def _count(self, storage: Any) -> None:
        key = storage_key(storage)
        num_bytes = -(-storage.nbytes() // self._rounding_bytes) * self._rounding_bytes
        found = self._alive.get(key)
        if found is not None:
            block = found[1]
            if num_bytes != block.num_bytes:  # resized in place
                self._log.append((block, num_bytes - block.num_bytes))
                block.num_bytes = num_bytes
            return
        if num_bytes == 0:  # may still grow: seen again when it does
            return
        is_recomputed = self.phase is Phase.BACKWARD and torch.is_grad_enabled()
        block = _Block(num_bytes, self.phase, is_recomputed)

        def died(_: Any) -> None:
            if self._alive.pop(key, None) is not None:
                block.death_phase = self.phase
                self._log.append((block, -block.num_bytes))

        self._alive[key] = (weakref.ref(storage, died), block)
        self._log.append((block, num_bytes))

    def num_marks(self) -> int:
        """Stretches begun so far; `stretches(first)` takes it to begin here."""
        return len(self._marks)

    def stretches(self, first: int = 0) -> list[Stretch]:
        """The largest moment of each stretch from the `first` one on, in their order; call it when the step is over."""
        live = dict.fromkeys(Component, 0)
        found: list[Stretch] = []
        ends = [mark[0] for mark in self._marks[1:]] + [len(self._log)]
        for number, ((start, phase, layer), end) in enumerate(zip(self._marks, ends, strict=True)):
            best, best_total = dict(live), sum(live.values())
            total = best_total
            for block, num_bytes in self._log[start:end]:
                if block is None:
                    if total + num_bytes > best_total:
                        best, best_total = {**live, Component.SCRATCH: num_bytes}, total + num_bytes
                    continue
                if block.is_elsewhere:
                    continue
                live[block.component] += num_bytes
                total += num_bytes
                if total > best_total:
                    best, best_total = dict(live), total
            if number >= first:
                found.append(Stretch(phase.value, layer, best))
        return found


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)


def _storages(tensor: torch.Tensor) -> Iterator[Any]:
    """The storages of a tensor; a wrapper without one of its own is looked into by `own`'s callers."""
    try:
        yield tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse layouts and wrapper subclasses have none
        return


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


class Marks(Protocol):
    """Whoever measures a step, and is told what begins."""

    phase: Phase

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        ...


def marking_layers(live: Marks, model: nn.Module, kept: int) -> ExitStack:
    """Hooks that tell `live` which of the decoder's `kept` layers begins, forward and backward; they keep no tensor."""
    undo = ExitStack()
    found = layers_of(model, kept)
    if found is None:
        return undo

    def began(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if live.phase is Phase.FORWARD:  # not where it is computed again
                live.enter(Phase.FORWARD, number)
                if number == 0:
                    _mark_gradient(live, args[0] if args else kwargs.get("hidden_states"), None)

        return hook

    def ended(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if live.phase is Phase.FORWARD:
                _mark_gradient(live, output[0] if isinstance(output, tuple) else output, number)
                if number == kept - 1:
                    live.enter(Phase.FORWARD)

        return hook

    for number, layer in enumerate(found[2]):
        undo.callback(layer.register_forward_pre_hook(began(number), with_kwargs=True).remove)
        undo.callback(layer.register_forward_hook(ended(number)).remove)
    return undo


def _mark_gradient(live: Marks, hidden: Any, layer: int | None) -> None:
    """When this tensor's gradient is there, the backward pass enters the layer that made the tensor."""
    if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
        hidden.register_hook(lambda gradient: live.enter(Phase.BACKWARD, layer))
