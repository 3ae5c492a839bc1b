"""How much memory this process may still take before the system refuses it or kills it, and what its heap keeps unused.

Plan and guard both ask here, so that what the plan says fits is not refused later: what is there is `usable_bytes`;
what tensors take of it is their bytes times `RESIDENT_PER_LIVE`; and `GROWTH_BYTES` and `RESERVE_BYTES` stay free.

Two kinds of limit.  *Resident*: pages that are really in use; the machine's, and the control groups' (versions 1 and 2)
that the process is in; going over it is a kill without an exception.  *Address*: what is set aside, used or not
(`ulimit -v`, `ulimit -d`); going over it is a failed allocation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sartor.device import free_bytes
from sartor.memory import heap

if TYPE_CHECKING:
    import torch

RESIDENT_PER_LIVE = 1.14
"""What glibc's heap takes for each byte of tensors at the peak, between its blocks: 13 to 14 % in steps like these."""
GROWTH_BYTES = 64 << 20
"""By which a process grows beside tensors once a run has begun: kernels that oneDNN compiles, files, Python's objects.
Measured: 10 to 80 MB on a CPU, of which some has come before the first micro-batch."""
RESERVE_BYTES = 48 << 20
"""Kept free for what is not predicted, to the end."""
_NO_LIMIT = 1 << 60
"""Control groups of version 1 without a limit say 2**63 - 4096."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is left under one kind of limit."""

    free_bytes: int
    """That the process may grow by."""
    idle_bytes: int
    """That its own heap holds and does not use."""
    limit: str
    """Whose limit it is, for messages."""

    @property
    def usable_bytes(self) -> int:
        """That tensors can be made in.

        The heap's unused memory counts whole: that it lies in pieces is in what a tensor is said to take of it.
        """
        return self.free_bytes + self.idle_bytes


def rooms(other_bytes: int = 0) -> list[Room]:
    """What is left, under each kind of limit that there is.

    Args:
        other_bytes: resident memory that is neither the heap's nor a file's, see `other_bytes`.
    """
    account = heap.account()
    idle = 0 if account is None else max(0, anonymous_bytes() - account.used_bytes - other_bytes)
    found = [Room(free, idle, name) for free, name in _resident_limits()]
    idle = 0 if account is None else account.idle_bytes
    found += [Room(free, idle, name) for free, name in _address_limits()]
    return found


def tightest(other_bytes: int) -> Room:
    """The room under the limit that is met first; see `rooms`."""
    return min(rooms(other_bytes), key=lambda room: room.usable_bytes)


def available_bytes(device: torch.device) -> int:
    """Free memory: of an accelerator, or what the machine, its control groups and limits on this process leave.

    The least counts, with what this process's own heap holds and does not use.
    """
    own = free_bytes(device)
    return tightest(other_bytes()).usable_bytes if own is None else own


def other_bytes() -> int:
    """Anonymous memory beside glibc's heap: Python's own arenas, stacks.  Ask before anything was trimmed."""
    account = heap.account()
    return 0 if account is None else max(0, anonymous_bytes() - account.used_bytes - account.idle_bytes)


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's; 0 where the system does not say."""
    info = psutil.Process().memory_info()
    return info.rss - info.shared if hasattr(info, "shared") else 0


def _resident_limits() -> list[tuple[int, str]]:
    limits = [(int(psutil.virtual_memory().available), "this machine's memory")]
    for folder, limit_name, usage_name in _control_groups():
        try:
            limit = int((folder / limit_name).read_text(encoding="ascii"))
            used = int((folder / usage_name).read_text(encoding="ascii"))
            reclaimable = _file_cache_bytes(folder / "memory.stat")
        except (OSError, ValueError):  # "max": no limit
            continue
        if limit < _NO_LIMIT:
            limits.append((max(0, limit - used + reclaimable), "the control group's limit"))
    return limits


def swap_bytes() -> int:
    """Swap space that is free: slow, but no end."""
    return int(psutil.swap_memory().free)


@lru_cache(maxsize=1)
def _control_groups() -> tuple[tuple[Path, str, str], ...]:
    """Folders of the process's memory control groups, its own and those above, with their files' names."""
    if sys.platform != "linux":
        return ()
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.lstrip("/")
        # In a container the path may be the host's: then the mount's root is the process's own group.
        for folder in (own, *own.parents):
            if (folder / names[0]).exists():
                found.append((folder, *names))
            if folder == root:
                break
    return tuple(found)


def _file_cache_bytes(path: Path) -> int:
    """Cached file pages of a control group, which count as used and are given up before anything is killed."""
    entries = dict(line.split(" ", 1) for line in path.read_text(encoding="ascii").splitlines())
    prefix = "total_" if "total_inactive_file" in entries else ""
    return int(entries.get(f"{prefix}inactive_file", 0)) + int(entries.get(f"{prefix}active_file", 0))


def _address_limits() -> list[tuple[int, str]]:
    if sys.platform != "linux":
        return []
    import resource

    info: Any = psutil.Process().memory_info()
    found = []
    for limit, used, name in (
        (resource.RLIMIT_AS, info.vms, "the limit on virtual memory (ulimit -v)"),
        (resource.RLIMIT_DATA, info.data, "the limit on data (ulimit -d)"),
    ):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            found.append((max(0, soft - used), name))
    return found
