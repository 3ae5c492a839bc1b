"""What machine this is, and how much memory a process took."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    here = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name and the number of usable cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def matrix_rate(size: int = 2048, seconds: float = 1.0, dtype: str = "float32") -> float:
    """Best FLOP/s of square matrix products over about a second."""
    import torch

    left = torch.randn(size, size).to(getattr(torch, dtype))
    right = torch.randn(size, size).to(getattr(torch, dtype))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        _ = left @ right
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


class PeakMemory:
    """Peak resident memory from now on, above what is resident now (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self._start = self._status("VmRSS")

    def above_start_bytes(self) -> int:
        """Bytes."""
        return self._status("VmHWM") - self._start

    @staticmethod
    def _status(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {name}")
