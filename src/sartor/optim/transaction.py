"""An optimizer's step that reaches each parameter wholly or not at all, and once, also where memory ends within it.

In: an optimizer whose gradients are complete.  Out: its step.  What it keeps true: after a failure, parameters and
their states are either stepped on or as they were, and the next `step()` goes on with the others.

Two ways. *In place*: a fused step whose states exist allocates nothing, so it cannot run out of memory; it is called
once, as anywhere.  *In pieces*: else (states that the first step allocates, temporaries of a step that is not fused)
the step is called for some parameters at a time, the others left out of its groups; a copy of the piece and its
states is put back where it fails.  A parameter's step does not depend on other parameters, so the result is the same,
bit for bit. That holds for torch's optimizers, but for LBFGS; others are called once, in place, and a failure inside
ends the run.

States that live in the host's memory (`host_states`) are brought to the device with their piece, and taken back.
Parameters in bfloat16 go through float32 and are rounded stochastically (`rounded_update`), in pieces of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sartor import compat
from sartor.errors import ConfigurationError, OutOfMemoryError, is_out_of_memory
from sartor.optim.host_states import HostStates, settle_on_device
from sartor.optim.registry import facts_of
from sartor.optim.rounded_update import RoundedUpdate
from sartor.records import Plan

PIECE_BYTES = 32 << 20
"""Of parameters that are stepped on at a time, together: what is put aside meanwhile, and what temporaries are of.  A
larger one goes alone."""


class Update:
    """An optimizer, stepped on in a transaction; has what a `GradScaler` needs of an optimizer."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        host: HostStates | None = None,
        rounded: RoundedUpdate | None = None,
    ) -> None:
        """Args:
        optimizer: whose step it is.
        host: where its states live; None: on the device.
        rounded: takes the step, where parameters are in bfloat16.
        """
        self.optimizer = optimizer
        self.number = 0
        """Of the next update in its run; keys the random bits of rounding."""
        self._host = host
        self._rounded = rounded
        self._done: set[nn.Parameter] = set()
        self._piece_bytes = PIECE_BYTES

    def settle(self) -> None:
        """States that are there already go where they are to live: a resumed run's, or another run's.

        Raises:
            ConfigurationError: the step has to be taken in pieces, and cannot be.
        """
        self._require_pieces()
        if self._rounded is not None:
            self._rounded.settle()
        elif self._host is not None:
            self._host.settle()
        elif goes_in_pieces(self.optimizer):
            settle_on_device(self.optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    def step(self) -> None:
        """Step, or go on with a step that failed.

        Raises:
            OutOfMemoryError: memory ended within a step that was called once, and some parameters may be updated.
            ConfigurationError: the step has to be taken in pieces, and cannot be.
            RuntimeError, MemoryError: as the optimizer raised it; call again after freeing memory.
        """
        self._require_pieces()
        if self._rounded is not None:
            self._rounded.step(self.number, self._piece_bytes)
            return
        if not goes_in_pieces(self.optimizer) or (not self._done and self._is_in_place()):
            self._at_once()
            return
        for piece in self._pieces():
            self._step(piece)
            self._done.update(piece)
        self._done.clear()

    def needed_bytes(self) -> int:
        """What the next `step` will allocate: states that are not there yet, and copies of a piece with its states."""
        waiting = self._waiting()
        each = state_bytes_per_value(self.optimizer)
        if self._rounded is not None:
            return self._rounded.needed_bytes(self._piece_bytes, each)
        states = each * sum(parameter.numel() for parameter in waiting if not self.optimizer.state.get(parameter))
        if not waiting or not goes_in_pieces(self.optimizer) or (not self._done and self._is_in_place()):
            return states
        largest = max(parameter.nbytes for parameter in waiting)
        piece = min(max(self._piece_bytes, largest), sum(parameter.nbytes for parameter in waiting))
        if self._host is None and not any(self.optimizer.state.values()):
            return states + piece
        return states + piece + each * (piece // 4)

    @torch.no_grad()
    def rehearse(self) -> bool:
        """The first step as it will be, its states made and kept; weights are put back from copies, bit for bit.

        Returns:
            False where that would not be exact, and nothing was done: the optimizer has states already, or its step
            cannot be taken in pieces.
        """
        if not goes_in_pieces(self.optimizer) or any(self.optimizer.state.values()):
            return False
        if self._rounded is not None:
            self._rounded.rehearse(self.number, self._piece_bytes)
            return True
        for piece in self._pieces():
            for copy in self._step(piece):
                copy.parameter.copy_(copy.data)
        return True

    def forget(self) -> None:
        """Drop the states that `rehearse` made: the optimizer is as new."""
        self.optimizer.state.clear()

    def smaller(self) -> str | None:
        """Make the next call need less; says how, or None where it goes one parameter at a time already."""
        if self._piece_bytes == 0:
            return None
        self._piece_bytes = 0
        return f"the rest of the update one {'parameter' if self._rounded is None else 'block of values'} at a time"

    def _require_pieces(self) -> None:
        if goes_in_pieces(self.optimizer) or (self._host is None and self._rounded is None):
            return
        what = (
            "stochastic_rounding=True steps on parameters"
            if self._rounded is not None
            else "optimizer_states='host' streams states"
        )
        raise ConfigurationError(
            f"{what} in pieces, which the step of {type(self.optimizer).__name__} cannot be taken in: choose one of "
            "torch's own optimizers, without hooks of your own."
        )

    def _is_in_place(self) -> bool:
        """Fused, and every state there: nothing is left to allocate."""
        if self._host is not None:
            return False
        fused = all(group.get("fused") for group in self.param_groups)
        return fused and all(self.optimizer.state.get(parameter) for parameter in self._waiting())

    def _waiting(self) -> list[nn.Parameter]:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return [parameter for parameter in parameters if parameter.grad is not None and parameter not in self._done]

    def _pieces(self) -> Iterator[list[nn.Parameter]]:
        piece: list[nn.Parameter] = []
        size = 0
        for parameter in self._waiting():
            if piece and size + parameter.nbytes > self._piece_bytes:
                yield piece
                piece, size = [], 0
            piece.append(parameter)
            size += parameter.nbytes
        if piece:
            yield piece

    def _step(self, piece: list[nn.Parameter]) -> list[_Copy]:
        """Step on these parameters alone; a failure leaves them as they were.  Returns what they were."""
        host = self._host
        before = [_Copy.of(parameter, {} if host is not None else self.optimizer.state) for parameter in piece]
        own = set(piece)
        groups = [(group, group["params"]) for group in self.param_groups]
        for group, parameters in groups:
            group["params"] = [parameter for parameter in parameters if parameter in own]
        try:
            if host is not None:
                host.fetch(piece)
            self.optimizer.step()
            if host is not None:
                host.put_away(piece)
        except BaseException:
            for copy in before:
                copy.put_back({} if host is not None else self.optimizer.state)
            if host is not None:
                host.drop(piece)
            raise
        finally:
            for group, parameters in groups:
                group["params"] = parameters
        return before

    def _at_once(self) -> None:
        """One call for all parameters; a failure that has changed nothing may be tried again."""
        known = goes_in_pieces(self.optimizer)
        before = self._num_writes()
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (known and self._num_writes() == before):
                raise
            raise OutOfMemoryError(
                f"memory ran out within the step of {type(self.optimizer).__name__} ({error}), which may have updated "
                "some of the parameters: there is no going on from here. Choose one of torch's own optimizers "
                "(optim='adamw_torch_fused'), whose steps can be taken in pieces."
            ) from error

    def _num_writes(self) -> int:
        """Writes in place that parameters and states have seen: torch counts them."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        tensors = [value for value in states if torch.is_tensor(value)]
        return sum(map(compat.num_writes, (*tensors, *self._waiting())))


def planned_update(optimizer: torch.optim.Optimizer, plan: Plan, *, seed: int = 0) -> Update:
    """The update as a plan wants it.

    Args:
        optimizer: whose step it is.
        plan: says where its states live, and whether parameters are rounded.
        seed: of the run; for rounding.
    """
    host = HostStates(optimizer) if plan.optimizer_states == "host" else None
    rounded = RoundedUpdate(optimizer, seed, host) if plan.stochastic_rounding else None
    return Update(optimizer, host, rounded)


def goes_in_pieces(optimizer: torch.optim.Optimizer) -> bool:
    """Whether each parameter's step depends on this parameter alone: torch's own optimizers, but for LBFGS.

    Hooks of a user's own would be called once per piece, which they do not expect.
    """
    facts = facts_of(optimizer)
    return facts is not None and facts.goes_in_pieces and not compat.has_step_hooks(optimizer)


def state_bytes_per_value(optimizer: torch.optim.Optimizer) -> int:
    """What the first step of an optimizer keeps for each value of a parameter; 0 where that is not known, or little."""
    facts = facts_of(optimizer)
    return 0 if facts is None else facts.bytes_per_value(optimizer.param_groups[0])


@dataclass(frozen=True, slots=True)
class _Copy:
    """One parameter and its optimizer state, as they were."""

    parameter: nn.Parameter
    data: torch.Tensor
    state: dict[str, Any] | None

    @classmethod
    @torch.no_grad()
    def of(cls, parameter: nn.Parameter, states: Any) -> _Copy:
        state = states.get(parameter)
        if state is not None:
            state = {name: value.clone() if torch.is_tensor(value) else value for name, value in state.items()}
        return cls(parameter, parameter.detach().clone(), state)

    @torch.no_grad()
    def put_back(self, states: Any) -> None:
        """In the tensors' own memory: nothing is allocated."""
        self.parameter.copy_(self.data)
        if self.state is None:
            states.pop(self.parameter, None)
            return
        for name, value in self.state.items():
            if torch.is_tensor(value):
                states[self.parameter][name].copy_(value)
            else:
                states[self.parameter][name] = value
