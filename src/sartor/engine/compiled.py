"""The decoder's layers as torch.compile makes them: one program for all of them, whatever the documents' lengths.

In: a transformers model and a plan.  Out: its layers, called through their compiled forms while gradients are computed.
What it keeps true: the model is the same object with the same weights; evaluation, sampling and whoever uses the model
afterwards call it as it was.

Layers alone are compiled, since they are alike: the program made for the first serves all.  Sizes are left open in it,
or each new number of tokens would be compiled anew.  Attention per document is called between two programs: how many
documents there are, and how long they are, is nothing that a program should depend on.  Evaluation and generation stay
as they are: another mode and a cache of keys would need programs of their own, which take longer to make than they
save.

Example: a Llama of 8 layers becomes two programs, before attention and after it, each with its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sartor import compat
from sartor.device import kind_of
from sartor.errors import ConfigurationError
from sartor.records import Plan

Calls = tuple[tuple[nn.Module, Callable[..., Any]], ...]
"""Layers, each with its compiled form."""


def compiled_calls(inner: nn.Module, plan: Plan) -> Calls:
    """The layers of a transformers model with their compiled forms, which are made when they are first called.

    Args:
        inner: the transformers model, without its adapter's wrapper.
        plan: says whether and how.  Nothing is compiled where its `compile_backend` is None.
    """
    if plan.compile_backend is None:
        return ()
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    return tuple(
        (
            layer,
            torch.compile(compat.plain_call(layer), backend=plan.compile_backend, mode=plan.compile_mode, dynamic=True),
        )
        for layer in layers
    )


@contextmanager
def in_use(calls: Calls) -> Iterator[None]:
    """Layers are called through their compiled forms within the block."""
    for layer, call in calls:
        compat.set_compiled_call(layer, call)
    try:
        yield
    finally:
        for layer, _ in calls:
            compat.set_compiled_call(layer, None)


def check_compiler(backend: str, device: torch.device) -> None:
    """Find out before a run whether layers can be compiled here.

    Args:
        backend: of torch.compile.
        device: that programs are made for.

    Raises:
        ConfigurationError: the backend is unknown, or what makes its programs is not installed; says what to do.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigurationError(
            f"torch_compile_backend={backend!r} is unknown here: choose one of {', '.join(sorted(known))}."
        )
    if backend != "inductor":
        return
    if not kind_of(device).needs_triton:
        if not compat.has_cpp_compiler():
            raise ConfigurationError(
                "torch_compile=True needs a C++ compiler on a CPU, and none was found: install one (g++ or clang), or "
                "leave torch_compile out."
            )
    elif not compat.has_triton():
        raise ConfigurationError(
            f"torch_compile=True needs Triton on {device.type}, which is not installed or does not know this "
            "device: install it (pip install triton), or leave torch_compile out."
        )
