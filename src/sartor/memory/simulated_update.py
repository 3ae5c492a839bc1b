"""The run's own update, on tensors without content: the same allocations, and of those that repeat, a few.

In: an optimizer of fake tensors, and a plan.  Out: an `optim.transaction.Update`.  What it keeps true: what allocates
is the code that a run's update goes through, so that a change of it changes the prediction with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sartor.device import HOST, kind_of
from sartor.optim.host_states import HostStates
from sartor.optim.rounded_update import RoundedUpdate, Slice, copied, is_array
from sartor.optim.transaction import Update
from sartor.records import Plan


def simulated_update(optimizer: torch.optim.Optimizer, plan: Plan) -> Update:
    """The update as a plan wants it; where the device has memory of its own, what the host holds is on "meta"."""
    place = HOST if kind_of(plan.device).is_host else "meta"
    host = HostStates(optimizer, place) if plan.optimizer_states == "host" else None
    return Update(optimizer, host, _ShortRoundedUpdate(optimizer, 0, host) if plan.stochastic_rounding else None)


class _ShortRoundedUpdate(RoundedUpdate):
    """A rounded update whose repetitions are left out: blocks of one size are alike."""

    def step(self, number: int, piece_bytes: int) -> None:
        """See `RoundedUpdate.step`."""
        repetitions = self._repetitions()
        self._done.update(repetitions)
        super().step(number, piece_bytes)
        self._make_states(repetitions)

    def rehearse(self, number: int, piece_bytes: int) -> None:
        """See `RoundedUpdate.rehearse`."""
        repetitions = self._repetitions()
        self._done.update(repetitions)
        super().rehearse(number, piece_bytes)
        self._make_states(repetitions)

    def _blocks(self, parameter: nn.Parameter, number: int) -> Iterator[Slice]:
        """The first three that are left of a parameter, and the last."""
        blocks = list(super()._blocks(parameter, number))
        yield from blocks if len(blocks) <= 3 else (*blocks[:3], blocks[-1])

    def _repetitions(self) -> dict[nn.Parameter, nn.Parameter]:
        """Parameters that fill pieces by themselves, as one before them and one after do; each with the one before."""
        alike: dict[Any, list[nn.Parameter]] = {}
        for parameter, number in self._waiting():
            if len(list(self._blocks(parameter, number))) > 3:
                alike.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
        return {parameter: some[0] for some in alike.values() for parameter in some[1:-1]}

    def _make_states(self, repetitions: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Of parameters that were left out, as those that they are like have them."""
        states = self._optimizer.state
        for parameter, other in repetitions.items():
            if not states.get(parameter):
                states[parameter] = {
                    name: self._memory(parameter, value.dtype)
                    if is_array(value, other)
                    else copied(value, parameter.device, moves=False)
                    for name, value in states[other].items()
                }
