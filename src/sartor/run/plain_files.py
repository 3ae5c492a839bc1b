"""Reading files that somebody else may have made: nothing but a plain file is opened, and no more of it than fits.

In: paths.  Out: their content, or what is wrong with them.  What it keeps true: no link is followed, no pipe or device
is waited for, and memory is bounded, whatever a checkpoint's folder holds.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from sartor.errors import RunFolderError

MANIFEST_BYTES = 1 << 24
"""The most that a manifest may have: that of 8 TB has half of it."""
JSON_BYTES = 1 << 26
"""The most that the state of a run may have beside its tensors."""
HISTORY_BYTES = 1 << 28
"""The most that `trainer_state.json` may have: it holds every line that was logged."""


class DamagedError(RunFolderError):
    """A checkpoint that is not what was written, or cannot be what a run wrote; says which file, and how."""


def open_plain(path: Path) -> BufferedReader:
    """Open a file to read it.

    Raises:
        DamagedError: it is a link, a pipe, a device, or anything else that is no plain file.
        OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    if path.is_symlink():
        raise DamagedError(f"{path.name} is a link, and nothing in a checkpoint is one")
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # a pipe is not waited for
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # characters that no file name has
        raise DamagedError(f"{path.name!r} is no name of a file ({error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path.name} is no plain file")
    return os.fdopen(descriptor, "rb")


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedError: the file holds none, has more than `most_bytes`, or cannot be read; names the file.
        FileNotFoundError: it is not there.
    """
    try:
        with open_plain(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > most_bytes:
                raise DamagedError(f"{path.name} has {size:,} bytes, and at most {most_bytes:,} can be right")
            content = json.loads(file.read(most_bytes + 1).decode("utf-8"))
    except (FileNotFoundError, DamagedError):
        raise
    except RecursionError:
        raise DamagedError(f"{path.name} cannot be read (it is nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path.name} cannot be read (it holds no JSON object)")
    return content


def see_plain(folder: Path) -> None:
    """See that below a folder there are only folders and plain files; the folder itself may be reached by a link.

    Raises:
        DamagedError: there is something else; names it.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if entry.is_symlink():
                    raise DamagedError(f"{name} is a link, and nothing in a checkpoint is one")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise DamagedError(f"{name} is neither a file nor a folder")


def _can_be_written(name: str) -> bool:
    """False for half a character."""
    try:
        return bool(os.fsencode(name))
    except UnicodeError:
        return False


def listed(content: Mapping[str, Any], what: str) -> dict[str, dict[str, Any]]:
    """The files of a manifest.

    Args:
        content: of the manifest.
        what: its name, for messages.

    Raises:
        DamagedError: an entry is not as it is written, or leads out of the folder; names it.
    """
    files = content.get("files")
    if not isinstance(files, dict):
        raise DamagedError(f"{what} cannot be read (it lists no files)")
    for name, entry in files.items():
        path = PurePosixPath(name)
        leads_out = path.is_absolute() or ".." in path.parts or "\0" in name or (os.name == "nt" and Path(name).drive)
        if leads_out or path.as_posix() != name or name == "." or not _can_be_written(name):
            raise DamagedError(f"{what} lists {name!r}, which is no file of this checkpoint")
        is_right = (
            isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("xxh3_64"), list)
        )
        if not is_right:
            raise DamagedError(f"{what} says of {name} neither bytes nor checksums")
    return files
