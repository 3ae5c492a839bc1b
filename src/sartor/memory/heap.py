"""glibc's heap: it keeps what it has while training lasts, is asked what it holds, and trimmed where much lies idle.

A training step on a CPU allocates and frees the same large buffers again and again.  glibc returns each to the system
and asks for it again, and the system clears every page: up to a quarter of a step (docs/log.md has the measurements).
`retaining` makes it keep them, and gives everything back at the end, with the settings that the process began with.

Half-precision products are oneDNN's, which compiles a kernel for each shape and keeps 1,024 of them, with their memory:
with documents of varying lengths that is hundreds of megabytes, more with every step until the cache is full.  A
micro-batch uses some thirty shapes, in every layer the same ones, and the next one others; so fewer are kept here.

In half precision keeping alone lets a process grow: kernels that oneDNN keeps lie between buffers that go, and the next
micro-batch, of another length, finds no hole that is large enough (docs/log.md has the measurements).  `Surplus` gives
pages of the holes back to the system; what the next micro-batch touches comes again, zeroed, which costs it about a
tenth of its time.  So that is done only where much has gathered beyond what a micro-batch was seen to touch, and
seldom.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """glibc, with `mallopt` and `malloc_trim` declared; None elsewhere (a preloaded allocator ignores both)."""
    if sys.platform != "linux":
        return None
    try:
        found = ctypes.CDLL(None)
        found.gnu_get_libc_version  # noqa: B018 - musl has none
        found.mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
        found.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return found


@dataclass(frozen=True, slots=True)
class Heap:
    """glibc's account of its heap."""

    used_bytes: int
    idle_bytes: int


class _MallInfo(ctypes.Structure):
    """malloc.h, struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd",
                     "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


def account() -> Heap | None:
    """What glibc's heap uses and keeps; None elsewhere, or before glibc 2.33."""
    glibc = _library()
    if glibc is None or not hasattr(glibc, "mallinfo2"):
        return None
    glibc.mallinfo2.restype = _MallInfo
    info = glibc.mallinfo2()
    return Heap(int(info.uordblks) + int(info.hblkhd), int(info.fordblks))


def give_back() -> None:
    """Give the heap's unused pages back to the system."""
    glibc = _library()
    if glibc is not None:
        glibc.malloc_trim(0)


# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_DEFAULT_MMAP_MAX = 65_536
_DEFAULT_TRIM_THRESHOLD = 128 * 1024
_NEVER_TRIM = 2**31 - 1

_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS_KEPT = 128


@contextmanager
def retaining(*, wanted: bool = True) -> Iterator[bool]:
    """Within the block, freed memory stays with the process; yields whether that could be arranged.

    Elsewhere than on Linux with glibc, or where `wanted` is False, nothing happens.
    """
    glibc = _library() if wanted else None
    with _few_kernels() if wanted else nullcontext():
        if glibc is None:
            yield False
            return
        glibc.mallopt(_M_MMAP_MAX, 0)
        glibc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        try:
            yield True
        finally:
            glibc.mallopt(_M_MMAP_MAX, _started_with("mmap_max", _DEFAULT_MMAP_MAX))
            glibc.mallopt(_M_TRIM_THRESHOLD, _started_with("trim_threshold", _DEFAULT_TRIM_THRESHOLD))
            glibc.malloc_trim(0)


def _started_with(name: str, default: int) -> int:
    """What the process was started with: a tunable of glibc's, or the older variable; glibc itself does not say."""
    tunables = dict(part.partition("=")[::2] for part in os.environ.get("GLIBC_TUNABLES", "").split(":"))
    text = tunables.get(f"glibc.malloc.{name}") or os.environ.get(f"MALLOC_{name.upper()}_", "")
    try:
        return min(int(text, 0), _NEVER_TRIM)
    except ValueError:
        return default


@contextmanager
def _few_kernels() -> Iterator[None]:
    """Let oneDNN keep fewer kernels; it reads its setting once, at the process's first product of that kind."""
    if _KERNELS in os.environ:  # the user's
        yield
        return
    os.environ[_KERNELS] = str(KERNELS_KEPT)
    try:
        yield
    finally:
        os.environ.pop(_KERNELS, None)


LEAST_BYTES = 256 << 20
"""Less is not worth it."""
SHARE = 0.5
"""Of what a micro-batch touches, that may lie idle beyond it."""
EVERY = 16
"""Micro-batches, at least, between two times."""


class Surplus:
    """Watches one process's idle memory from micro-batch to micro-batch."""

    def __init__(self, give_back: Callable[[], None] = give_back) -> None:
        self._give_back = give_back
        self._needed_bytes = 0
        """The most that was idle after the first micro-batch, or after the first one that followed a giving back."""
        self._since: int | None = None
        """Micro-batches that came after that; None: that one is the next."""

    def watch(self, idle_bytes: int) -> None:
        """Called after each micro-batch, with the resident memory that the heap holds and does not use.

        Example: 1.1 GB after the first, then 0.2 GB more after each sixteen.  1.1 + 0.55 GB are passed after the
        forty-eighth: given back, and the forty-ninth touches what it needs again.
        """
        if self._since is None:
            self._needed_bytes = max(self._needed_bytes, idle_bytes)
            self._since = 0
            return
        self._since += 1
        allowed = self._needed_bytes + max(LEAST_BYTES, SHARE * self._needed_bytes)
        if self._since >= EVERY and idle_bytes > allowed:
            self._give_back()
            self._since = None
