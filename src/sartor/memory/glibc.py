"""The C library, where it is glibc: what its heap can be told and asked."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
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
