"""glibc's allocator, told to keep what it has while training lasts.

A training step on a CPU allocates and frees the same large buffers again and again.  glibc returns each to the system
and asks for it again, and the system clears every page: up to a quarter of a step (docs/log.md has the measurements).
`retaining` makes it keep them, and gives everything back at the end, with the settings that the process began with.

Half-precision products are oneDNN's, which compiles a kernel for each shape and keeps 1,024 of them, with their memory:
with documents of varying lengths that is hundreds of megabytes, more with every step until the cache is full.  A
micro-batch uses some thirty shapes, in every layer the same ones, and the next one others; so fewer are kept here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sartor.memory import glibc

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
    library = glibc.library() if wanted else None
    with _few_kernels() if wanted else nullcontext():
        if library is None:
            yield False
            return
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        try:
            yield True
        finally:
            library.mallopt(_M_MMAP_MAX, _started_with("mmap_max", _DEFAULT_MMAP_MAX))
            library.mallopt(_M_TRIM_THRESHOLD, _started_with("trim_threshold", _DEFAULT_TRIM_THRESHOLD))
            library.malloc_trim(0)


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
