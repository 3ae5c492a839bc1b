"""Every malloc of a process, counted by a library that is preloaded: compiled here where there is a C compiler.

The count shares nothing with torch: neither its allocator nor its profiler.  Linux with glibc only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SOURCE = Path(__file__).with_suffix(".c")
_VARIABLE = "SARTOR_MALLOC_COUNT"
"""Path of the library in a process that it counts."""


def why_not() -> str | None:
    """Why mallocs cannot be counted on this machine; None where they can."""
    if sys.platform != "linux":
        return "mallocs are counted on Linux only, by preloading a library"
    if compiler() is None:
        return "there is no C compiler here (cc, gcc or clang) to make the library that counts mallocs"
    return None


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def is_counted() -> bool:
    """Whether this process was started by `run_counted`."""
    return _VARIABLE in os.environ


def run_counted(arguments: Sequence[str], *, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process whose mallocs are counted; its standard output is returned.

    Raises:
        SystemExit: that is not possible here.
    """
    against = why_not()
    if against is not None:
        raise SystemExit(against)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "malloc_count.so"
        built = subprocess.run(
            [str(compiler()), "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode:
            raise SystemExit(f"{SOURCE.name} cannot be compiled: {built.stderr.strip()}")
        environment = {**os.environ, "LD_PRELOAD": str(library), _VARIABLE: str(library)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False,
            timeout=timeout_s,
        )  # fmt: skip


class MallocPeak:
    """The most that all mallocs of this process together rose above what they were when the block began."""

    num_bytes = 0

    def __enter__(self) -> MallocPeak:
        self._library = ctypes.CDLL(os.environ[_VARIABLE])
        for function in (self._library.malloc_count_live, self._library.malloc_count_peak):
            function.restype = ctypes.c_long
        self._library.malloc_count_reset_peak()
        self._start = int(self._library.malloc_count_live())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.num_bytes = int(self._library.malloc_count_peak()) - self._start
