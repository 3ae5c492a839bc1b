"""Optimizers on fake tensors, by transformers' names.

torch's own run as they are.  Those of packages that need a GPU or that are not installed are stood in for by a rule
for their states' bytes, which `optim/registry.py` has; a prediction that used one says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from sartor.errors import ConfigurationError
from sartor.memory.prediction import MakeOptimizer
from sartor.optim import registry
from sartor.optim.registry import flags

_BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit states (Dettmers et al. 2021, section 2.1,
https://huggingface.co/papers/2110.02861; 256 since bitsandbytes 0.45)."""
_SMALLEST_BLOCKED = 4_096
"""Parameters with fewer values keep float32 states (bitsandbytes' `min_8bit_size`)."""


class StatesByRule(torch.optim.Optimizer):
    """Allocates states as another optimizer would; its update has no temporaries, as the fused kernels it stands for.

    Args:
        groups: parameter groups.
        num_states: tensors per parameter.
        is_eight_bit: one byte per value and a float32 scale per block, but for small parameters and embeddings.
    """

    def __init__(self, groups: list[dict[str, Any]], *, num_states: int, is_eight_bit: bool) -> None:
        super().__init__(groups, {})
        self._num_states = num_states
        self._is_eight_bit = is_eight_bit

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make what is missing; nothing else."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    for number in range(self._num_states):
                        self._make_state(parameter, number, group.get("is_embedding", False))

    def _make_state(self, parameter: torch.Tensor, number: int, is_embedding: bool) -> None:
        state = self.state[parameter]
        if not self._is_eight_bit or is_embedding or parameter.numel() < _SMALLEST_BLOCKED:
            state[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.float32)
            return
        state[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[f"absmax{number}"] = parameter.new_zeros(-(-parameter.numel() // _BLOCK), dtype=torch.float32)


def maker(
    name: str, *, is_cuda: bool, implementation: str | None = None, options: Mapping[str, Any] | None = None
) -> MakeOptimizer:
    """How to make an optimizer by transformers' name.

    Args:
        name: `SFTConfig.optim`.
        is_cuda: torch takes its `foreach` implementations by itself there, and one parameter at a time on a CPU.
        implementation: one of `registry.IMPLEMENTATIONS`; None: what the name says, else torch's own choice.
        options: see `registry.options_of`.

    Raises:
        ConfigurationError: no rule for this name.
    """
    facts = registry.named(name)
    if facts.num_states is None:
        known = ", ".join(sorted(row.name for row in registry.ROWS if row.name and row.num_states is not None))
        raise ConfigurationError(
            f"optim={name!r}: what its states need is not known here; known are {known}. Pass its maker instead."
        )
    if is_by_rule(name):
        return partial(StatesByRule, num_states=facts.num_states, is_eight_bit=facts.is_eight_bit)
    assert facts.constructor is not None
    kind: Any = facts.constructor()
    how: dict[str, Any] = {}
    if facts.goes_in_pieces and implementation is None:
        how = {"fused": True} if facts.implementation == "fused" else {"foreach": is_cuda}
    elif facts.goes_in_pieces and implementation is not None:
        how = {name: value for name, value in flags(implementation).items() if name != "fused" or facts.fused_on}
    return partial(kind, lr=1e-5, **facts.arguments, **how, **(options or {}))


def is_by_rule(name: str) -> bool:
    """Whether an optimizer is stood in for by a rule for its states' bytes."""
    facts = registry.named(name)
    return facts.constructor is None and facts.num_states is not None


def maker_like(optimizer: torch.optim.Optimizer) -> MakeOptimizer:
    """How to make an optimizer of the kind and with the options that this one has."""
    kind = type(optimizer)
    taken = inspect.signature(kind).parameters  # AdamW's defaults name one that only Adam's constructor takes
    return partial(kind, **{name: value for name, value in optimizer.defaults.items() if name in taken})


def groups_of(model: nn.Module, embedding: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups as transformers' Trainer makes them: matrices decay, norms and biases do not.

    Embeddings are a group of their own, since bitsandbytes keeps their states in float32.
    """
    embedded = {id(parameter) for parameter in embedding.parameters()}
    trained: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    lists: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "embeddings": []}
    for parameter in trained:
        key = "embeddings" if id(parameter) in embedded else ("matrices" if parameter.dim() > 1 else "vectors")
        lists[key].append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if key == "vectors" else 0.01, "is_embedding": key == "embeddings"}
        for key, params in lists.items()
        if params
    ]


def make_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Gradients of no content, for a first update."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All tensors that an optimizer keeps from step to step."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
