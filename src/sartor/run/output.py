"""Standard output and error that cannot be written: the reader has left, the terminal is gone, the disk is full.

A run of hours must not end because of it.  In: the two streams.  Out: the same, but what cannot be written is dropped.
Once a reader has left, that is everything; on a disk that is full it is lines, which are counted, and the next one is
tried anew.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""A pipe without a reader, and a terminal that was closed."""


class _Patient(io.TextIOBase):
    """A text stream that writes to another one, for which a reader that has left is no error.

    Args:
        stream: where to write.
        loses_lines: whether no other error of the system is one either.
    """

    def __init__(self, stream: TextIO, *, loses_lines: bool) -> None:
        self._stream = stream
        self.loses_lines = loses_lines
        self.num_lost = 0
        """Lines."""
        self.reason = ""
        self._num_waiting = 0
        """Lines that lie in the stream's buffer."""

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has: `buffer`, `name`, `reconfigure`."""
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def write(self, text: str) -> int:
        num_lines = text.count("\n")
        self._num_waiting += num_lines
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        if num_lines and self.loses_lines:  # a loss must be known as long as it is one of few lines
            self.flush()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)
        self._num_waiting = 0

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _drop(self, error: OSError) -> None:
        """Empty the stream's buffer, so that what has no room is not tried again, not even by Python at its end.

        Where the reader has left, its descriptor leads nowhere from here on: whoever else holds it can write too.
        """
        is_gone = error.errno in _GONE
        if not is_gone and not self.loses_lines:
            raise error
        if not is_gone:
            self.num_lost += self._num_waiting
            self.reason = error.strerror or str(error)
        self._num_waiting = 0
        try:
            descriptor = self.fileno()
        except OSError:  # a stream of the program's own
            return
        before = os.dup(descriptor)
        _open_nowhere(descriptor)
        if not is_gone:
            self._stream.flush()
            os.dup2(before, descriptor)
        os.close(before)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """While this lasts, printing to a reader that has left is no error."""
    with _replaced(loses_lines=False):
        yield


@contextlib.contextmanager
def lines_may_be_lost() -> Iterator[None]:
    """While this lasts, printing is never an error of the system's; what was lost is told at the end, where it can be.

    A stream that was closed leads nowhere from here on, since a file of the run would get its descriptor, and with it
    whatever a library prints.  Streams of the program's own, as a notebook's, stay as they are.
    """
    for descriptor in (0, 1, 2):
        if not _is_open(descriptor):
            _open_nowhere(descriptor)
    with _replaced(loses_lines=True) as streams:
        try:
            yield
        finally:
            for name, stream in streams.items():
                stream.flush()
                if stream.num_lost:
                    were = "line was" if stream.num_lost == 1 else "lines were"
                    _tell(f"{stream.num_lost} {were} lost from {name}: {stream.reason}.", streams)


def say(text: str) -> None:
    """Print a line to standard error; one that cannot be written is lost."""
    with _replaced(loses_lines=True):
        print(text, file=sys.stderr, flush=True)


def _tell(text: str, streams: dict[str, _Patient]) -> None:
    for stream in reversed(streams.values()):  # standard error first
        num_lost = stream.num_lost
        print(f"sartor: {text}", file=stream, flush=True)
        if stream.num_lost == num_lost:
            return


@contextlib.contextmanager
def _replaced(*, loses_lines: bool) -> Iterator[dict[str, _Patient]]:
    """The streams that were replaced, by what people call them."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:

        def patient(stream: TextIO | None) -> Any:
            if stream is None:  # it was closed when Python began
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            is_patient = isinstance(stream, _Patient) and stream.loses_lines >= loses_lines
            if is_patient or not isinstance(stream, io.TextIOWrapper | _Patient):
                return stream
            return _Patient(stream, loses_lines=loses_lines)

        streams = {"standard output": patient(sys.stdout), "standard error": patient(sys.stderr)}
        sys.stdout, sys.stderr = streams.values()
        new = {
            name: stream
            for (name, stream), old in zip(streams.items(), before, strict=True)
            if isinstance(stream, _Patient) and stream is not old
        }
        try:
            yield new
        finally:
            for stream in new.values():
                stream.flush()
            sys.stdout, sys.stderr = before


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:  # it was closed, and the lowest one that was
        os.set_inheritable(nowhere, True)
        return
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
