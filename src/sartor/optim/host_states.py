"""Optimizer states that live in the host's memory, and pass through the device piece by piece at each update.

In: an optimizer whose update takes each parameter by itself.  Out: for a few parameters at a time, their states on the
device.  What it keeps true: the update runs on the same numbers with the same kernels, so the result is that of states
on the device, bit for bit; and until a piece is put away the host holds it as it was, so that a failure changes
nothing.

Example, AdamW on 8 billion parameters: 64 GB of moments stay in the host's memory; the device holds those of 32 MB of
parameters at a time, 64 MB.  They cross PCI Express twice in each optimizer step.

A number of dimension 0, such as a count of steps, stays where it is.  Copies are queued in the order of the update's
own kernels: nothing overlaps, and nothing is read before it has arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sartor.device import HOST, await_copies, is_on_host, reads_pinned


class HostStates:
    """Where an optimizer's states live between its updates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Args:
        optimizer: whose states they are.
        """
        self._optimizer = optimizer
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._pins = any(reads_pinned(parameter) for parameter in parameters)
        """Whether a GPU is to read what the host holds."""
        self._homes: dict[nn.Parameter, dict[str, Any] | None] = {}
        """Of parameters whose states are on the device: what the host holds; None: it holds nothing yet."""

    def fetch(self, piece: Iterable[nn.Parameter]) -> None:
        """Bring the states of these parameters to their device; where that fails nothing has changed."""
        states = self._optimizer.state
        piece = list(piece)
        try:
            for parameter in piece:
                state = states.get(parameter)
                self._homes[parameter] = dict(state) if state else None
                if state:
                    states[parameter] = {name: copied(value, parameter.device) for name, value in state.items()}
        except BaseException:
            self.drop(piece)
            raise

    def put_away(self, piece: Iterable[nn.Parameter]) -> None:
        """Take the states of these parameters back to the host; where that fails the host holds what it held."""
        states = self._optimizer.state
        found = [(parameter, states[parameter], self._homes[parameter] or {}) for parameter in piece]
        targets = [
            {name: self._home(homes.get(name), value) for name, value in state.items() if _is_stored(value)}
            for _, state, homes in found
        ]
        with torch.no_grad():
            for (parameter, state, _), target in zip(found, targets, strict=True):
                for name, home in target.items():
                    home.copy_(state[name], non_blocking=True)
                states[parameter] = {**state, **target}
                del self._homes[parameter]
        self.await_copies()

    def await_copies(self) -> None:
        """Until what was put away has arrived: from here on others may read it, a checkpoint."""
        if self._pins:
            await_copies()

    def memory_like(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host for a state of a parameter's shape."""
        return torch.empty(parameter.shape, dtype=dtype, device=HOST, pin_memory=self._pins)

    def drop(self, piece: Iterable[nn.Parameter]) -> None:
        """What the device holds of these parameters' states is of no use: the host's hold."""
        for parameter in piece:
            if parameter in self._homes:
                home = self._homes.pop(parameter)
                if home is None:
                    self._optimizer.state.pop(parameter, None)
                else:
                    self._optimizer.state[parameter] = home

    def settle(self) -> None:
        """Take all states that are elsewhere to the host: those that an optimizer makes when it is made."""
        self.drop(list(self._homes))
        for parameter, state in self._optimizer.state.items():
            self._optimizer.state[parameter] = {
                name: self._moved(value) if _is_stored(value) else value for name, value in state.items()
            }

    def load(self, saved: Mapping[str, Any]) -> None:
        """`optimizer.load_state_dict`, without the detour over the device that torch takes.

        Args:
            saved: a `state_dict` of an optimizer of the same kind and parameters.
        """
        optimizer = self._optimizer
        optimizer.load_state_dict({"state": {}, "param_groups": saved["param_groups"]})
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            state = saved["state"].get(number)
            if state:
                small = parameter.device if _counts_on_device(optimizer, parameter) else None
                optimizer.state[parameter] = {name: self._loaded(value, small) for name, value in state.items()}

    def _loaded(self, value: Any, small: torch.device | None) -> Any:
        if _is_stored(value):
            return self._moved(value)
        return value.to(small) if isinstance(value, torch.Tensor) and small is not None else value

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        if is_on_host(value) and (not self._pins or value.is_pinned()):
            return value
        return self._home(None, value).copy_(value)

    def _home(self, known: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Memory of the host for a state; pinned where a GPU is to read it."""
        if known is not None and is_on_host(known) and (known.shape, known.dtype) == (like.shape, like.dtype):
            return known
        return torch.empty_like(like, device=HOST, pin_memory=self._pins)


def settle_on_device(optimizer: torch.optim.Optimizer) -> None:
    """States that an earlier run left in the host's memory go to their parameters' device."""
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, torch.Tensor):
            for name, value in state.items():
                if _is_stored(value) and value.device != parameter.device:
                    state[name] = value.to(parameter.device)


def _is_stored(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def copied(value: Any, device: torch.device) -> Any:
    """A copy of a part of a state: of an array on this device and in order, of a number where it is."""
    if not _is_stored(value):
        return value.clone() if isinstance(value, torch.Tensor) else value
    copy = torch.empty_like(value, device=device, pin_memory=False, memory_format=torch.contiguous_format)
    return copy.copy_(value, non_blocking=True)


def _counts_on_device(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether a count of steps has to be where the parameter is: torch's rule for fused and capturable updates."""
    group = next(group for group in optimizer.param_groups if any(parameter is other for other in group["params"]))
    return bool(group.get("fused") or group.get("capturable"))
