"""What a real step used, stretch by stretch, measured without the tracker that foresaw it.

In: a device, and whoever says which stretch begins.  Out: the most that was in use in each.  What it keeps true: the
instrument shares nothing with `tracker.LiveSet`, so that foreseen and measured may disagree.

On CUDA it is the caching allocator's own peak.  On a CPU a thread reads glibc's account of the heap (bytes handed out,
free blocks left out) every millisecond; torch's kernels let other threads run while they work.  The resident memory of
the process would not do: it holds what the heap keeps for later, and so shows the past.  Where there is no glibc, it is
what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sartor.memory import limits
from sartor.memory.prediction import Prediction, Stretch
from sartor.memory.tracker import Phase

INTERVAL_S = 0.001
"""Between two readings: a layer of a model of 100 million parameters takes ten times as long."""


@dataclass(slots=True)
class Measured:
    """One stretch of a real step."""

    phase: Phase
    layer: int | None
    num_bytes: int
    """The most that was in use; of the whole process until `Trace.stretches` takes off what is no tensor."""


class Trace:
    """Measures while `with Trace(...)` lasts; whoever computes says with `enter` what begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stretches: list[Measured] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._before = 0
        self.phase = Phase.BUILD

    def __enter__(self) -> Trace:
        self._before = self._now()
        self._stretches = [Measured(Phase.BUILD, None, self._before)]
        if self._device.type == "cpu":
            self._thread = threading.Thread(target=self._watch, name="sartor-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_stretch()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        self._close_stretch()
        self.phase = phase
        self._stretches.append(Measured(phase, layer, self._now()))

    def num_stretches(self) -> int:
        """Begun so far."""
        return len(self._stretches)

    def stretches(self, held_bytes: int, first: int = 0) -> list[Measured]:
        """The stretches from the `first` one on, in bytes of tensors and kernels' scratch.

        Args:
            held_bytes: of the tensors that were there when measuring began: what the process used besides is taken off.
            first: what `num_stretches` said.
        """
        shift = held_bytes - self._before
        return [Measured(part.phase, part.layer, part.num_bytes + shift) for part in self._stretches[first:]]

    def _close_stretch(self) -> None:
        current = self._stretches[-1]
        if self._device.type == "cuda":
            current.num_bytes = int(torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            current.num_bytes = max(current.num_bytes, self._now())

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            current = self._stretches[-1]  # before reading: what is read may belong to the next one already
            current.num_bytes = max(current.num_bytes, self._now())

    def _now(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        heap = limits.heap_account()
        return limits.anonymous_bytes() if heap is None else heap.used_bytes


def instrument(device: torch.device) -> str:
    """What is read, for people."""
    if device.type == "cuda":
        return "the CUDA allocator's peak"
    return "resident memory" if limits.heap_account() is None else "the heap in use, read every millisecond"


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
    prediction: Prediction | None, measured: Sequence[Measured], about: Mapping[str, Any], reason: str = ""
) -> dict[str, Any]:
    """What the run folder keeps of a rehearsal, and figures are made of.

    Args:
        prediction: None where none could be made.
        measured: empty where nothing was.
        about: what was computed: model, tokens.
        reason: why there is no prediction.
    """
    foreseen: dict[str, Any] = {"reason": reason}
    if prediction is not None:
        foreseen = {
            "peak_bytes": prediction.peak_bytes,
            "margin_bytes": prediction.margin_bytes,
            "notes": list(prediction.notes),
            "timeline": [_stretch(part) for part in last_pass(prediction.timeline)],
        }
    return {
        **about,
        "foreseen": foreseen,
        "measured": {
            "peak_bytes": max((part.num_bytes for part in measured), default=None),
            "timeline": [{"phase": p.phase.value, "layer": p.layer, "bytes": p.num_bytes} for p in measured],
        },
    }


def _stretch(part: Stretch) -> dict[str, Any]:
    return {
        "phase": part.phase,
        "layer": part.layer,
        "components": {key.value: num_bytes for key, num_bytes in part.components.items()},
    }
