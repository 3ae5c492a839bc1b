"""Writing into the run folder: whole files or nothing, and one kind of error when it cannot be done."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sartor.errors import DiskFullError, RunFolderError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a RunFolderError that names `path` and says what to do.

    Raises:
        RunFolderError: for any OSError, a DiskFullError where there is no room; one that is a RunFolderError already
            passes unchanged.
    """
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        kind = DiskFullError if error.errno in _NO_SPACE else RunFolderError
        raise kind(f"cannot write {path}: {_explain(path, error)}") from error


def _explain(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return f"{reason}. Free some space on that disk, or choose another output_dir."
    if error.errno in _NOT_ALLOWED:
        return f"{reason}. Choose an output_dir that you may write to."
    if isinstance(error, FileNotFoundError):
        return f"{path.parent} does not exist (any more). Was the run folder moved or deleted?"
    return f"{reason}."


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part; returns `path`.

    Text is written as UTF-8 with plain newlines on every platform.

    Raises:
        RunFolderError: the folder is missing, not writable, or the disk is full.  The old file is then untouched.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with errors_name(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)  # mkstemp makes it private, and a run folder is often shared
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    return path
