"""Output that nobody reads any more: `sartor train ... 2>&1 | head`, or a terminal that is gone.

A run of hours must not end because of it.  In: standard output and error.  Out: the same, but from the first thing on
that cannot be written, everything is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""A pipe without a reader, and a terminal that was closed."""


class _Patient(io.TextIOBase):
    """A text stream that writes to another one, for which a reader that has left is no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _drop(self, error: OSError) -> None:
        """Let the descriptor lead nowhere: whoever else holds it, and Python at its end, can write too."""
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """While this lasts, printing to a reader that has left is no error."""
    before = sys.stdout, sys.stderr
    patient = _Patient(sys.stdout), _Patient(sys.stderr)
    sys.stdout, sys.stderr = patient
    try:
        yield
    finally:
        for stream in patient:
            stream.flush()
        sys.stdout, sys.stderr = before
