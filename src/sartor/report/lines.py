"""A file of lines that is appended to while a run goes on.

In: whole lines, as bytes.  Out: a file at whose end they stand.  Kept true: it holds whole lines only, also after a
crash or on a full disk, so that it can be read meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from sartor.errors import RunFolderError
from sartor.report.files import errors_name

_BLOCK_BYTES = 4096


class LinesFile:
    """Appends lines to a file, whole or not at all.

    An existing file is continued; a last line that a crash cut short is removed first.  Usable as a context manager.

    Raises:
        RunFolderError: the file cannot be opened: no such folder, not writable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        with errors_name(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            _drop_partial_line(self._descriptor)

    def append(self, lines: bytes) -> None:
        """Append lines, each with its end.  They are in the file when this returns.

        Raises:
            RunFolderError: the disk is full, or the file or its folder has gone since it was opened.
        """
        descriptor = self._opened()
        with errors_name(self.path):
            _require_same_file(descriptor, self.path)
            _append(descriptor, lines)

    def sync(self) -> int:
        """Bring what was written to the disk; returns the file's length in bytes.

        Raises:
            RunFolderError: the disk refuses, or the file was closed.
        """
        descriptor = self._opened()
        with errors_name(self.path):
            os.fsync(descriptor)
            return os.fstat(descriptor).st_size

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> int:
        if self._descriptor is None:
            raise RunFolderError(f"cannot write {self.path}: it was closed. Open it again with {type(self).__name__}.")
        return self._descriptor


def whole_lines(path: Path | str) -> list[bytes]:
    """The lines of a file without their ends; a last one that has none is still being written, and is left out.

    Raises:
        RunFolderError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}.") from error


def _require_same_file(descriptor: int, path: Path) -> None:
    """Writing to a deleted file succeeds, and the records are gone: so look whether the name still leads here."""
    if not os.path.samestat(os.stat(path), os.fstat(descriptor)):
        raise RunFolderError(f"cannot write {path}: the file was replaced while the run was writing to it.")


def _append(descriptor: int, lines: bytes) -> None:
    """Append all of it, or put the file back as it was and raise OSError."""
    size_bytes = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(lines):
            written += os.write(descriptor, lines[written:])
    except OSError:
        if written:
            os.ftruncate(descriptor, size_bytes)
        raise


def _drop_partial_line(descriptor: int) -> None:
    end = os.lseek(descriptor, 0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - _BLOCK_BYTES)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        os.ftruncate(descriptor, position)
