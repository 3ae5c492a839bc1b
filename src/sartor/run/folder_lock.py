"""One run at a time in a folder: a lock that ends with the process that holds it.

In: a run folder.  Out: it is this run's as long as the lock is held; a second run is refused, and told whose it is.

The lock is `flock` on a file that says who holds it, and is deleted when it is given back.  Why so:

- The system lets go of `flock` when the last descriptor of that opening is closed, so at the latest when the process
  has ended, however it did.  A file alone would have to be cleared by hand after each kill.
- A child that is forked inherits the descriptor, and a worker that outlives a killed run would hold its lock.  So
  children close theirs (`os.register_at_fork`), and programs that are started don't get it (Python opens files so).
- The other kind, POSIX's record locks, is not inherited; but it is lost as soon as the process closes *any* descriptor
  of that file, as a copy of the folder does, and two trainers of one process don't see each other's.
- Deleting the file is safe since only its holder does, and since whoever gets the lock looks whether the name still
  leads to what was locked: else another run deleted it in between, and it is tried anew.

Some shared disks have no locks.  There what the file says counts, until its process is known to be gone: of another
host that cannot be known, and the message says how to clear it.  Two runs that begin there in the same instant are not
told apart.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sartor.errors import RunFolderError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".sartor.lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What `flock` says on a disk that cannot lock."""
_HELD = frozenset({errno.EAGAIN, errno.EACCES})
"""What it says where somebody else has the lock; EACCES comes from network disks."""


class _Lock:
    """A descriptor that holds a lock, until this process closes it; a forked child closes its own at once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        mine = weakref.ref(self)

        def close() -> None:
            lock = mine()
            if lock is not None:
                lock.close()

        os.register_at_fork(after_in_child=close)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder, which is there, for one run.

    Raises:
        RunFolderError: another run holds it, and is named with its process, host and start.
        OSError: the lock's file cannot be written.
    """
    if fcntl is None:
        yield
        return
    path = Path(folder).absolute() / LOCK_NAME
    lock = _Lock(_taken(path))
    try:
        _sign(lock.descriptor)
        yield
    finally:
        if lock.descriptor is not None:  # None in a forked child: the lock is its parent's
            if _leads_to(path, lock.descriptor):
                with contextlib.suppress(OSError):
                    path.unlink()
            lock.close()


def refuse_running(folder: str | os.PathLike[str]) -> None:
    """See early, before anything heavy is loaded, that no run holds a folder; `held` decides.

    Raises:
        RunFolderError: as `held`.
    """
    if os.path.exists(os.path.join(folder, LOCK_NAME)):
        with contextlib.suppress(PermissionError), held(folder):
            pass


def _taken(path: Path) -> int:
    """A descriptor of the lock's file that holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _is_locked(descriptor):
                raise RunFolderError(_refusal(path, descriptor))
            if _leads_to(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether another run has the lock; else it is this one's now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return os.fstat(descriptor).st_size > 0 and not _is_gone(_holder(descriptor))
        if error.errno not in _HELD:
            raise
        return True
    return False


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a name still leads to what was opened by it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int | None) -> None:
    """Say in the lock's file who holds it."""
    assert descriptor is not None
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "started": started})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says; nothing where its run has not come to writing it."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether the process that signed is known to have ended."""
    process = holder.get("process")
    if not isinstance(process, int) or holder.get("host") != socket.gethostname():
        return False
    if process == os.getpid():  # an earlier one of this number: a container that was started anew counts from 1
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _refusal(path: Path, descriptor: int) -> str:
    holder = _holder(descriptor)
    who = "another run, which has just begun"
    if holder:
        mine = ", which is this one" if holder.get("process") == os.getpid() else ""
        who = (
            f"another run: process {holder.get('process')}{mine}, on the host {holder.get('host')}, since "
            f"{holder.get('started')}"
        )
    return (
        f"output_dir {path.parent} is in use by {who}. Wait until it has ended, end it, or choose another output_dir. "
        f"If that process is gone, as a shared disk may not notice when a host fails: delete {path}"
    )
