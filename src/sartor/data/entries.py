"""Folders of a cache that are whole or not there, each under a key made of everything that it depends on.

What comes in: a key, a function that makes an entry and one that reads it.  What goes out: what was read.  What it
keeps true: an entry is written beside its place and renamed; a damaged one is said and made again; one process makes it
while others that want the same wait for it, however long it takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import xxhash

T = TypeVar("T")

OFF = "none"
"""What the option `data_cache` says to switch the cache off."""
LARGE_BYTES = 1 << 28
"""Rows of more are kept in files, not in memory."""
_READ_BYTES = 1 << 22

Say = Callable[[str], None]


class Damaged(Exception):
    """An entry that cannot be used; says why."""


def folder_of(option: str | None) -> Path | None:
    """The folder of all entries: the one asked for, else `sartor` in the cache of `datasets`; None where it is off."""
    if option == OFF:
        return None
    if option is not None:
        return Path(option).expanduser()
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "sartor"


def found_or_made(
    key: str, folder: Path, read: Callable[[Path, bool], T], make: Callable[[Path], None], say: Say
) -> tuple[T, bool]:
    """An entry, and whether it was there.

    Args:
        key: names everything that the entry depends on.
        read: reads an entry's folder, given whether it was made right now; raises `Damaged`.
        make: fills a folder that is empty.
        say: tells the user what happens.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    entry, building = folder / key, folder / f"{key}.building"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock", say):
        if entry.exists():
            try:
                return read(entry, False), True
            except Damaged as error:
                say(f"The cached data in {entry} is damaged ({error}): it is made again.")
        # What is there was left by a process that was killed, and a damaged entry has been said.
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(entry, ignore_errors=True)
        building.mkdir()
        try:
            make(building)
            building.rename(entry)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return read(entry, True), False


def temporary_folder(prefix: str) -> Path:
    """A new folder, whose maker sees that it is removed."""
    return Path(tempfile.mkdtemp(prefix=prefix))


def removed_with(owner: object, folder: Path) -> None:
    """Have a folder removed when nobody uses the owner any more, or this process ends.

    What is mapped into memory stays readable until its last user is gone.
    """
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock that the system releases when its holder ends, however it ends; wait for it as long as it takes."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process prepares the same data: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest_of_file(path: Path) -> str:
    """128 bits of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        feed(digest, file)
    return digest.hexdigest()


def feed(digest: Any, file: IO[bytes]) -> None:
    """Add a file's bytes to a digest."""
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
