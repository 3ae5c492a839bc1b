"""Writing into the run folder: whole files or nothing, and one kind of error when it cannot be done."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sartor.errors import DiskFullError, RunFolderError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PRIVATE = 0o600


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
        name = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            with name.open("xb") as file:  # not by mkstemp, which makes it private: a run folder is often shared
                file.write(data)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    return path


def share_weights(folder: str | os.PathLike[str]) -> None:
    """Give the weights in a folder the permissions that any new file gets: safetensors makes its files private.

    Other files are left alone, for a private one may be meant so.

    Raises:
        OSError: the folder cannot be read.
    """
    permissions = 0o666 & ~_umask()
    for path in Path(folder).glob("*.safetensors"):
        if path.stat().st_mode & 0o777 == _PRIVATE and permissions != _PRIVATE:
            path.chmod(permissions)


def _umask() -> int:
    """Which permissions this process takes from new files."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration):  # no Linux: it can be read only by setting it
        umask = os.umask(0o077)
        os.umask(umask)
        return umask
