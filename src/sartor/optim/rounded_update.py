"""An optimizer's step on bfloat16 parameters: taken in float32, a piece at a time, and rounded back stochastically.

In: torch's own optimizer, over parameters and gradients in bfloat16.  Out: its step.  A piece's parameters and
gradients are made wide, its states (float32) are fetched from wherever they live, the optimizer steps on these
stand-ins, and what comes out is rounded into the parameters (`engine/rounding.py`).  What it keeps true: until all of a
piece is ready nothing of it has changed, so a step that memory ended goes on where it stood; and random bits are keyed
by seed, update, parameter and block, so a step has the same result however it is cut into pieces, begun again, or
resumed: there is no state of a generator to save.

Example: an embedding of 525 million values goes in 126 blocks of 4 million (16 MB in float32), the last one smaller,
two at a time; each has random bits of its own.  Where memory ends in the ninth pair, the next call begins with that
pair, one block at a time.  A block is always a tensor of its own, so no kernel adds up otherwise in a piece of
another size.

A parameter goes in blocks where each value's step depends on that value alone, as with AdamW; others go whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sartor.engine.rounding import round_stochastically_
from sartor.optim.host_states import HostStates, copied, settle_on_device
from sartor.optim.registry import facts_of

BLOCK_VALUES = 1 << 22
"""That are stepped on as one tensor, with random bits of their own."""
_WIDE_BYTES = 4
_ROUNDING_BYTES = 12
"""For each value of a block, while it is rounded."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """Values `start` to `stop` of one parameter, counted in the order in which they lie in memory."""

    parameter: nn.Parameter
    number: int
    """Of the parameter, among all of the optimizer's."""
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.stop - self.start == self.parameter.numel()

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """These values of a tensor of the parameter's shape: a view of them, where it is sliced."""
        return values if self.is_whole else values.view(-1)[self.start : self.stop]


@dataclass(slots=True)
class _Progress:
    """A parameter whose step has begun."""

    before: dict[str, Any] | None
    """Its state before the step; None: it had none."""
    homes: dict[str, torch.Tensor]
    """Its state's arrays, where they live."""
    stop: int = 0
    """Values that are stepped on."""


class RoundedUpdate:
    """The step of an optimizer over bfloat16 parameters; see the module's text."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        seed: int,
        host: HostStates | None = None,
    ) -> None:
        """Args:
        optimizer: one of torch's own, whose step takes each parameter by itself.
        seed: of the run.
        host: where its states live; None: on the device.
        """
        self._optimizer = optimizer
        self._seed = seed
        self._host = host
        facts = facts_of(optimizer)
        self._goes_in_blocks = facts is not None and facts.step_unit == "value"
        self._progress: dict[nn.Parameter, _Progress] = {}
        self._done: set[nn.Parameter] = set()

    def settle(self) -> None:
        """States that are there already, as a resumed run's, go where they are to live, in float32."""
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:  # made with the optimizer
                    self._optimizer.state[parameter][name] = value.float()
        if self._host is None:
            settle_on_device(self._optimizer)
        else:
            self._host.settle()

    def step(self, number: int, piece_bytes: int) -> None:
        """Step, or go on with a step that failed.

        Args:
            number: of the update in its run.
            piece_bytes: parameters in float32 that are stepped on together; at least one block goes.
        """
        for piece in self._pieces(piece_bytes):
            self._step(piece, number)
        self._done.clear()

    @torch.no_grad()
    def rehearse(self, number: int, piece_bytes: int) -> None:
        """The step as it will be, its states made and kept; weights are put back from copies, bit for bit."""
        for piece in self._pieces(piece_bytes):
            before = [part.of(part.parameter.detach()).clone() for part in piece]
            self._step(piece, number)
            for part, values in zip(piece, before, strict=True):
                part.of(part.parameter.detach()).copy_(values)
        self._done.clear()

    def needed_bytes(self, piece_bytes: int, state_bytes: int) -> int:
        """What the next `step` will allocate: states that are not there yet, and a piece in float32.

        Args:
            piece_bytes: see `step`.
            state_bytes: that the optimizer keeps for each value.
        """
        waiting = self._waiting()
        sizes = [part.stop - part.start for parameter, number in waiting for part in self._blocks(parameter, number)]
        new = sum(parameter.numel() for parameter, _ in waiting if not self._optimizer.state.get(parameter))
        largest = max(sizes, default=0)
        most = min(sum(sizes), max(piece_bytes // _WIDE_BYTES, largest))
        rounding = _ROUNDING_BYTES * min(largest, BLOCK_VALUES)
        return state_bytes * new + (2 * _WIDE_BYTES + state_bytes) * most + rounding

    def _waiting(self) -> list[tuple[nn.Parameter, int]]:
        """Parameters that are not stepped on yet, with their numbers."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return [
            (parameter, number)
            for number, parameter in enumerate(parameters)
            if parameter.grad is not None and parameter not in self._done
        ]

    def _pieces(self, piece_bytes: int) -> Iterator[list[_Slice]]:
        piece: list[_Slice] = []
        size = 0
        for parameter, number in self._waiting():
            for part in self._blocks(parameter, number):
                num_bytes = _WIDE_BYTES * (part.stop - part.start)
                if piece and size + num_bytes > piece_bytes:
                    yield piece
                    piece, size = [], 0
                piece.append(part)
                size += num_bytes
        if piece:
            yield piece

    def _blocks(self, parameter: nn.Parameter, number: int) -> Iterator[_Slice]:
        """What is left of a parameter."""
        num_values = parameter.numel()
        begun = self._progress.get(parameter)
        first = 0 if begun is None else begun.stop
        lies_in_order = parameter.is_contiguous() and parameter.grad is not None and parameter.grad.is_contiguous()
        length = BLOCK_VALUES if self._goes_in_blocks and lies_in_order else num_values
        for start in range(first, num_values, max(1, length)):
            yield _Slice(parameter, number, start, min(num_values, start + length))

    @torch.no_grad()
    def _step(self, piece: list[_Slice], number: int) -> None:
        """Step on these slices; a failure leaves them as they were."""
        states = self._optimizer.state
        pairs: list[tuple[_Slice, nn.Parameter]] = []
        groups = [(group, group["params"]) for group in self._optimizer.param_groups]
        try:
            stand_ins: dict[nn.Parameter, list[nn.Parameter]] = {}
            for part in piece:
                pairs.append((part, self._stand_in(part)))
                stand_ins.setdefault(part.parameter, []).append(pairs[-1][1])
            for group, parameters in groups:
                group["params"] = [one for parameter in parameters for one in stand_ins.get(parameter, ())]
            self._optimizer.step()
            for part, stand_in in pairs:
                if part.parameter.dtype == torch.bfloat16:
                    self._round(part, stand_in, number)
            made = [self._homes(part, states[stand_in]) for part, stand_in in pairs]
            # From here on nothing is allocated, and nothing can fail.
            for (part, stand_in), homes in zip(pairs, made, strict=True):
                self._put_away(part, stand_in, homes)
        finally:
            for group, parameters in groups:
                group["params"] = parameters
            for _, stand_in in pairs:
                states.pop(stand_in, None)
        if self._host is not None:
            self._host.await_copies()

    def _stand_in(self, part: _Slice) -> nn.Parameter:
        """The slice in float32, with its gradient, and its state in the optimizer, all of them copies."""
        parameter = part.parameter
        assert parameter.grad is not None
        if parameter not in self._progress:
            state = self._optimizer.state.get(parameter)
            before = dict(state) if state else None
            homes = {name: value for name, value in (before or {}).items() if _is_array(value, parameter)}
            self._progress[parameter] = _Progress(before, homes)
        begun = self._progress[parameter]
        stand_in = nn.Parameter(_wide(part.of(parameter.detach())))
        stand_in.grad = _wide(part.of(parameter.grad))
        if begun.before is not None:
            self._optimizer.state[stand_in] = {
                name: copied(part.of(value) if name in begun.homes else value, stand_in.device)
                for name, value in begun.before.items()
            }
        return stand_in

    def _round(self, part: _Slice, stand_in: nn.Parameter, number: int) -> None:
        """In place, block by block: what comes out has room in bfloat16."""
        values = stand_in.detach().view(-1)
        for start in range(part.start, part.stop, BLOCK_VALUES):
            block = values[start - part.start : start - part.start + BLOCK_VALUES]
            round_stochastically_(block, (self._seed, number, part.number, start // BLOCK_VALUES))

    def _homes(self, part: _Slice, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Memory for all of the parameter's state, of which this slice's is the first that is made."""
        parameter, known = part.parameter, self._progress[part.parameter].homes
        num_values = part.stop - part.start
        for name, value in state.items():
            if name not in known and isinstance(value, torch.Tensor) and value.dim() and value.numel() == num_values:
                known[name] = self._memory(parameter, value.dtype)
        return known

    def _memory(self, parameter: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        if self._host is not None:
            return self._host.memory_like(parameter, dtype)
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False, memory_format=torch.contiguous_format)

    def _put_away(self, part: _Slice, stand_in: nn.Parameter, homes: dict[str, torch.Tensor]) -> None:
        """The slice into its parameter, and its state to where it lives; the last one ends the parameter's step."""
        parameter, state = part.parameter, self._optimizer.state[stand_in]
        part.of(parameter.detach()).copy_(stand_in)
        for name, home in homes.items():
            part.of(home).copy_(state[name], non_blocking=self._host is not None)
        self._progress[parameter].stop = part.stop
        if part.stop == parameter.numel():
            self._optimizer.state[parameter] = {name: homes.get(name, value) for name, value in state.items()}
            del self._progress[parameter]
            self._done.add(parameter)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """A copy in order: of bfloat16 in float32, of others in their own dtype."""
    dtype = torch.float32 if values.dtype == torch.bfloat16 else values.dtype
    return values.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _is_array(value: Any, parameter: nn.Parameter) -> bool:
    """Whether a state is of its parameter's shape."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == parameter.shape
