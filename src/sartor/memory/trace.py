"""What a real step used, stretch by stretch, measured without the tracker that predicted it.

In: a device, and whoever says which stretch begins.  Out: the most that was in use in each.  What it keeps true: the
instrument shares nothing with `tracker.LiveSet`, so that predicted and measured may disagree.

On CUDA it is the caching allocator's own peak.  On a CPU it is what torch's allocator hands out and takes back, as its
profiler is told: to the byte, at a few percent of the pass's time.  The resident memory of the process would not do: it
holds what the heap keeps for later, and so shows the past; and glibc's account of its heap takes milliseconds a
reading.  The profiler is the process's only one, so where the user's own profiler is at work, nothing is measured.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sartor import compat
from sartor.device import allocated_peak, kind_of, reset_peak
from sartor.memory.prediction import Phase, Prediction, Stretch

_PROFILER_LOG = "KINETO_LOG_LEVEL"
_MARK = "sartor stretch"
"""Name of the events that say where a stretch begins; its number follows."""


@dataclass(slots=True)
class Measured:
    """One stretch of a real step."""

    phase: Phase
    layer: int | None
    num_bytes: int
    """The most that was in use."""


class Trace:
    """Measures while `with Trace(...)` lasts; whoever computes says with `enter` what begins."""

    def __init__(self, device: torch.device, held_bytes: int) -> None:
        """Args:
        device: where is computed.
        held_bytes: of the tensors that are there already.
        """
        self._device = device
        self._kind = kind_of(device)
        self._held_bytes = held_bytes
        self.stretches: list[Measured] = []
        """Complete when the block is left."""
        self._profile: torch.autograd.profiler.profile | None = None
        self.reason = _profiler_of_the_user() if self._kind.is_host else ""
        """Why nothing can be measured; then every stretch has 0 bytes."""
        self.phase = Phase.BUILD

    def __enter__(self) -> Trace:
        self.stretches = [Measured(Phase.BUILD, None, self._held_bytes)]
        if not self._kind.is_host:
            reset_peak(self._device)
        elif not self.reason:
            self._profile = torch.autograd.profiler.profile(use_kineto=True, profile_memory=True)
            with _silent_profiler():
                self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profile is None:
            self._read_peak()
            return
        self._profile.__exit__(kind, error, traceback)
        if error is None:
            self._replay(compat.profiled_events(self._profile))
        self._profile = None

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        self.phase = phase
        if self._profile is None:
            self._read_peak()
        else:
            with torch.profiler.record_function(f"{_MARK} {len(self.stretches)}"):
                pass
        self.stretches.append(Measured(phase, layer, 0))

    def num_stretches(self) -> int:
        """Begun so far."""
        return len(self.stretches)

    def _read_peak(self) -> None:
        if self.reason:
            return
        self.stretches[-1].num_bytes = allocated_peak(self._device)
        reset_peak(self._device)

    def _replay(self, events: list[Any]) -> None:
        """The allocator's events and our marks, in their order."""
        live, current = self._held_bytes, self.stretches[0]
        for event in sorted(events, key=lambda event: event.start_ns()):
            name = event.name()
            if name == "[memory]":
                live += event.nbytes()
                current.num_bytes = max(current.num_bytes, live)
            elif name.startswith(_MARK):
                current = self.stretches[int(name.removeprefix(_MARK))]
                current.num_bytes = live


def _profiler_of_the_user() -> str:
    """What of the user's would be lost if the profiler were taken; empty where nothing would.

    A session that is prepared and has not begun, as `torch.profiler.schedule` prepares one in its warm-up, shows in no
    flag of torch's; starting another one then ends the process with a segmentation fault.  So such are looked for.
    """
    if compat.profiler_is_on():
        return "a profiler of torch's is at work already, which is left alone"
    kind = torch.autograd.profiler.profile
    for one in gc.get_objects():
        if type(one) is kind and compat.is_prepared(one):
            return "a profiler of torch's is about to begin, which is left alone"
    return ""


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Kineto writes lines of its own to standard error unless this says otherwise when it is first used."""
    if _PROFILER_LOG in os.environ:  # the user's
        yield
        return
    os.environ[_PROFILER_LOG] = "99"
    try:
        yield
    finally:
        os.environ.pop(_PROFILER_LOG, None)


def instrument(device: torch.device) -> str:
    """What is read, for people."""
    kind = kind_of(device)
    return "torch's allocator, by its profiler" if kind.is_host else f"the {kind.label} allocator's peak"


def held_bytes(model: nn.Module, more: Iterable[torch.Tensor] = ()) -> int:
    """Of all parameters, buffers and `more`, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers(), *more)
    }
    return sum(storages.values())


def last_pass(timeline: Sequence[Any]) -> list[Any]:
    """Of a step's stretches, the last forward and backward pass and what comes after it.

    Example: update, forward, loss, backward, forward, loss, backward, clip gives forward, loss, backward, clip.
    """
    losses = [number for number, part in enumerate(timeline) if part.phase == Phase.LOSS]
    if not losses:
        return list(timeline)
    start = losses[-1]
    while start > 0 and timeline[start - 1].phase == Phase.FORWARD:
        start -= 1
    return list(timeline[start:])


def as_json(
    prediction: Prediction | None,
    measured: Sequence[Measured],
    about: Mapping[str, Any],
    reason: str = "",
    unmeasured: str = "",
) -> dict[str, Any]:
    """What the run folder keeps of a rehearsal, and figures are made of.

    Args:
        prediction: None where none could be made.
        measured: empty where nothing was.
        about: what was computed: model, tokens.
        reason: why there is no prediction.
        unmeasured: why a rehearsal measured nothing.
    """
    predicted: dict[str, Any] = {"reason": reason}
    if prediction is not None:
        predicted = {
            "peak_bytes": prediction.rehearsal_bytes,
            "margin_bytes": prediction.margin_bytes,
            "notes": list(prediction.notes),
            "timeline": [_stretch(part) for part in last_pass(prediction.timeline)],
        }
    return {
        **about,
        "foreseen": predicted,
        "measured": {
            "peak_bytes": max((part.num_bytes for part in measured), default=None),
            "timeline": [{"phase": p.phase.value, "layer": p.layer, "bytes": p.num_bytes} for p in measured],
            **({"reason": unmeasured} if unmeasured else {}),
        },
    }


def _stretch(part: Stretch) -> dict[str, Any]:
    return {
        "phase": part.phase,
        "layer": part.layer,
        "components": {key.value: num_bytes for key, num_bytes in part.components.items()},
    }
