"""Who measures a step is told which layer of the decoder begins, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import nn

from sartor.memory import meta_model
from sartor.memory.tracker import Phase


class Marks(Protocol):
    """Whoever measures a step, and is told what begins."""

    phase: Phase

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        ...


def marking_layers(live: Marks, model: nn.Module, kept: int) -> ExitStack:
    """Hooks that tell `live` which of the decoder's `kept` layers begins, forward and backward; they keep no tensor."""
    undo = ExitStack()
    found = meta_model.layers_of(model, kept)
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
