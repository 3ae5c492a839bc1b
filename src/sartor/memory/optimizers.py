"""Optimizers on fake tensors, by transformers' names.

torch's own run as they are.  Those of packages that need a GPU or that are not installed are stood in for by a rule
for their states' bytes; `RULED` names them, and a prediction that used one says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sartor.device import kind_of
from sartor.errors import ConfigurationError

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""From parameter groups to an optimizer."""

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


IMPLEMENTATIONS = ("fused", "foreach", "for-loop")
"""Of the same update, equal up to rounding: one kernel per parameter; one list of kernels for all of them, with
temporaries as large; one parameter after the other."""

_FUSED = {
    "adamw_torch_fused": ("cpu", "cuda"),
    "sgd": ("cpu", "cuda"),
    "adagrad": ("cpu",),
}
"""Devices for which torch has a fused kernel; optim="adamw_torch" is the name of AdamW without it."""
_STATE_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0, "adagrad": 4, "rmsprop": 4}
"""For each trained value, in float32.  torch's optimizers, whose updates take each parameter by itself."""


def implementations(name: str, device_type: str) -> tuple[str, ...]:
    """Those of an optimizer on a device, the fastest first; empty where it has no others.

    On a CPU torch's `foreach` goes over parameters one by one too, and is left out.

    Args:
        name: `SFTConfig.optim`.
        device_type: "cpu" or "cuda".
    """
    if name not in _STATE_BYTES:
        return ()
    if device_type in _FUSED.get(name, ()):
        return ("fused",)
    return ("for-loop",) if kind_of(device_type).is_host else ("foreach", "for-loop")


def options_of(name: str, optim_args: str | None) -> dict[str, Any]:
    """What `optim_args` says that changes an optimizer's states, as transformers reads it.

    Example: "momentum=0.9" of sgd is {"momentum": 0.9}; of adamw_torch it says nothing.
    """
    said = dict(one.partition("=")[::2] for one in (optim_args or "").replace(" ", "").split(",") if one)
    found: dict[str, Any] = {}
    if name in ("sgd", "rmsprop") and "momentum" in said:
        found["momentum"] = float(said["momentum"])
    if name == "rmsprop" and "centered" in said:
        found["centered"] = said["centered"].lower() in ("true", "1", "yes")
    return found


def state_bytes(name: str, options: Mapping[str, Any] | None = None) -> int | None:
    """What torch's own optimizers keep for each trained value; None for others, whose states stay on the device.

    Args:
        name: `SFTConfig.optim`.
        options: see `options_of`.
    """
    if name not in _STATE_BYTES:
        return None
    return _STATE_BYTES[name] + 4 * sum(bool(value) for value in (options or {}).values())


def flags(implementation: str) -> dict[str, bool]:
    """torch's arguments for an implementation."""
    return {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def _adafactor(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=1e-5, scale_parameter=False, relative_step=False)


def _ruled(num_states: int, is_eight_bit: bool) -> MakeOptimizer:
    return lambda groups: StatesByRule(groups, num_states=num_states, is_eight_bit=is_eight_bit)


RULED: dict[str, tuple[int, bool]] = {
    "adamw_bnb_8bit": (2, True),
    "adamw_8bit": (2, True),
    "ademamix": (3, False),
    "ademamix_8bit": (3, True),
    "lion_8bit": (1, True),
    "lion_32bit": (1, False),
    "rmsprop_bnb": (1, False),
    "rmsprop_bnb_8bit": (1, True),
    "rmsprop_bnb_32bit": (1, False),
}
"""bitsandbytes' optimizers: (states per parameter, whether they are 8-bit).  By rule, unmeasured."""


def maker(
    name: str, *, is_cuda: bool, implementation: str | None = None, options: Mapping[str, Any] | None = None
) -> MakeOptimizer:
    """How to make an optimizer by transformers' name.

    Args:
        name: `SFTConfig.optim`.
        is_cuda: torch takes its `foreach` implementations by itself there, and one parameter at a time on a CPU.
        implementation: one of `IMPLEMENTATIONS`; None: what the name says, else torch's own choice.
        options: see `options_of`.

    Raises:
        ConfigurationError: no rule for this name.
    """
    if name in RULED:
        return _ruled(*RULED[name])
    how: dict[str, Any] = {"foreach": is_cuda} if implementation is None else flags(implementation)
    fused = {"fused": True} if implementation is None else how
    more = dict(options or {})
    makers: dict[str, MakeOptimizer] = {
        "adamw_torch": lambda groups: torch.optim.AdamW(groups, lr=1e-5, **how),
        "adamw_torch_fused": lambda groups: torch.optim.AdamW(groups, lr=1e-5, **fused),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-5, **how, **more),
        "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-5, **how),
        "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-5, foreach=how["foreach"], **more),
        "adafactor": _adafactor,
    }
    if name not in makers:
        known = ", ".join(sorted({*makers, *RULED}))
        raise ConfigurationError(
            f"optim={name!r}: what its states need is not known here; known are {known}. Pass its maker instead."
        )
    return makers[name]


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
