"""What a device has: free memory, and the peak that a run used."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

from sartor.memory import limits

if TYPE_CHECKING:
    import torch


def available_bytes(device: torch.device) -> int:
    """Free memory: of the GPU, or what the machine, its control groups and limits on this process leave.

    The least counts, with what this process's own heap holds and does not use.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return limits.tightest(limits.other_bytes()).usable_bytes


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU, or resident in this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
