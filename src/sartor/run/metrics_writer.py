"""`metrics.jsonl` and the figures that only a run knows: tokens per second, peak memory, share of the device's rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sartor.device import peak_bytes
from sartor.errors import DiskFullError
from sartor.report.metrics import MetricsFile

if TYPE_CHECKING:
    import torch


class MetricsWriter:
    """Counts tokens and time between logs, and appends one line per log."""

    def __init__(
        self,
        path: str,
        device: torch.device,
        peak_flops: float | None,
        on_full: Callable[[DiskFullError], None] | None = None,
    ) -> None:
        """Args:
        path: of the file.
        device: that is computed on.
        peak_flops: its rate, where that is known.
        on_full: called where the disk is full; the line is then kept, and written before the next one.  None: the error
            is raised.
        """
        self._file = MetricsFile(path)
        self._on_full = on_full
        self._waiting: list[dict[str, Any]] = []
        """Lines that the disk had no room for."""
        self._device = device
        self._peak_flops = peak_flops
        self._tokens = 0
        self._flops = 0.0
        self._seconds = 0.0
        self._saving_s = 0.0
        self._started: float | None = None

    def step_begins(self) -> None:
        """Start the clock of a step: evaluation and saving are not in it."""
        self._started = time.perf_counter()

    def step_ends(self, num_tokens: int, flops: float) -> None:
        """Count a step."""
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
        self._started = None
        self._tokens += num_tokens
        self._flops += flops

    def saving_waited(self, seconds: float) -> None:
        """Count time for which training waited for a checkpoint."""
        self._saving_s += seconds

    def write(self, step: int, logs: dict[str, Any]) -> None:
        """Append what was logged, and what was measured since the last log."""
        record: dict[str, Any] = {"step": step, **logs}
        if "loss" in logs and self._seconds > 0:
            record["tokens_per_second"] = self._tokens / self._seconds
            record["peak_memory_bytes"] = peak_bytes(self._device)
            if self._peak_flops:
                record["model_flops_utilization"] = self._flops / self._seconds / self._peak_flops
            self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
            if self._saving_s:
                record["saving_runtime"] = self._saving_s
                self._saving_s = 0.0
        self._waiting.append(record)
        self._write_waiting()

    def state(self) -> dict[str, float]:
        """What was counted since the last log."""
        return {"tokens": self._tokens, "flops": self._flops, "seconds": self._seconds}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned."""
        self._tokens, self._flops, self._seconds = int(state["tokens"]), state["flops"], state["seconds"]

    def durable_bytes(self) -> int:
        """The length of the file, all of which is on the disk when this returns."""
        self._write_waiting()
        return self._file.sync()

    @property
    def num_waiting(self) -> int:
        """Lines that the disk had no room for so far."""
        return len(self._waiting)

    def close(self) -> None:
        """Close the file; lines that wait get their last chance."""
        try:
            self._write_waiting()
        finally:
            self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                self._file.write(self._waiting[0])
            except BaseException as error:
                if isinstance(error, DiskFullError) and self._on_full is not None:
                    self._on_full(error)
                    return
                self._waiting.clear()
                raise
            del self._waiting[0]
