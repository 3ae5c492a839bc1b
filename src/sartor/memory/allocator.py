"""glibc's allocator, told to keep what it has while training lasts.

A training step on a CPU allocates and frees the same large buffers again and again.  glibc returns each to the system
and asks for it again, and the system clears every page: up to a quarter of a step (docs/log.md has the measurements).
`retaining` makes it keep them, and gives everything back at the end.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_DEFAULT_MMAP_MAX = 65_536
_DEFAULT_TRIM_THRESHOLD = 128 * 1024
_NEVER_TRIM = 2**31 - 1


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and still does the allocating (a preloaded allocator ignores mallopt)."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl has none
        library.mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return library


@contextmanager
def retaining(*, wanted: bool = True) -> Iterator[bool]:
    """Within the block, freed memory stays with the process; yields whether that could be arranged.

    Elsewhere than on Linux with glibc, or where `wanted` is False, nothing happens.
    """
    library = _glibc() if wanted else None
    if library is None:
        yield False
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield True
    finally:
        library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        library.malloc_trim(0)
