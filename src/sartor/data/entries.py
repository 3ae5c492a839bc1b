"""Folders of a cache that are whole or not there, each under a key made of everything that it depends on.

What comes in: a key, a function that makes an entry and one that reads it.  What goes out: what was read.  What it
keeps true: an entry is written beside its place and renamed; a damaged one is found by its checksums, said and made
again; one process makes it while others that want the same wait for it, however long it takes.  Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import xxhash

T = TypeVar("T")

OFF = "none"
"""What the option `data_cache` says to switch the cache off."""
LARGE_BYTES = 1 << 28
"""Rows of more are kept in files, not in memory."""
_READ_BYTES = 1 << 22

MANIFEST = "manifest.json"

Say = Callable[[str], None]
Content = dict[str, Any]
"""What is kept of an entry besides its files, as JSON has it."""


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
    key: str, folder: Path, read: Callable[[Path, Content], T], make: Callable[[Path], Content], say: Say
) -> tuple[T, bool]:
    """An entry, and whether it was there.

    Args:
        key: names everything that the entry depends on.
        read: reads an entry's folder, whose files are as they were written, given what `make` has returned.
        make: fills a folder that is empty; returns what else is to be kept, as JSON has it.
        say: tells the user what happens.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    entry, building = folder / key, folder / f"{key}.building"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock", say):
        if entry.exists():
            try:
                return read(entry, _checked(entry)), True
            except Damaged as error:
                say(f"The cached data in {entry} is damaged ({error}): it is made again.")
        # What is there was left by a process that was killed, and a damaged entry has been said.
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(entry, ignore_errors=True)
        building.mkdir()
        with _removed_on_error(building):
            content = make(building)
            _seal(building, content)
            building.rename(entry)
        return read(entry, content), False


def in_temporary_folder(
    prefix: str, read: Callable[[Path, Content], T], make: Callable[[Path], Content]
) -> tuple[T, Path]:
    """The same in a new folder that no other process finds; the caller sees that it is removed.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    with _removed_on_error(folder):
        return read(folder, make(folder)), folder


def removed_with(owner: object, folder: Path) -> None:
    """Have a folder removed when nobody uses the owner any more, or this process ends.

    What is mapped into memory stays readable until its last user is gone.
    """
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _seal(folder: Path, content: Content) -> None:
    """Write what is to be kept of an entry, and the checksums of all files; the last of them."""
    files = {path.name: [path.stat().st_size, digest_of_file(path)] for path in sorted(folder.iterdir())}
    whole = {"content": content, "files": files}
    text = json.dumps({**whole, "xxh3_128": _digest_of(whole)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _checked(entry: Path) -> Content:
    """What was kept of an entry, whose files are as they were written.

    Raises:
        Damaged: they are not.
    """
    try:
        whole: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        digest = whole.pop("xxh3_128")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if digest != _digest_of(whole):
        raise Damaged(f"{MANIFEST} has another checksum")
    for name, (num_bytes, checksum) in whole["files"].items():
        path = entry / name
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise Damaged(f"{name} is not as long as it was written")
        if digest_of_file(path) != checksum:
            raise Damaged(f"{name} has another checksum")
    content: Content = whole["content"]
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


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
