"""Prepared data sets on disk, each under a key made of everything that it depends on.

What comes in: a key, and a function that prepares.  What goes out: prepared data, mapped into memory.  What it keeps
true: an entry is whole or not there, for it is written beside its place and renamed; a damaged one is found by its
checksums, said, and made again; one process prepares while others that want the same wait for it, however long it
takes; where nothing can be written the data is prepared in memory, and that is said.

An entry is a folder: `data.arrow` (a stream as `datasets` writes it), `places.arrow`, and `manifest.json` with the
summary and the checksums.  Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import xxhash

from sartor.data.reading.places import Places
from sartor.records import DataSummary, PreparedData, RowFormat

if TYPE_CHECKING:
    import datasets

OFF = "none"
"""What the option `data_cache` says to switch the cache off."""
DATA, PLACES, MANIFEST = "data.arrow", "places.arrow", "manifest.json"
_READ_BYTES = 1 << 22

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Made:
    """A data set that was prepared: in memory, or as the file `DATA` of a folder."""

    summary: DataSummary
    places: Places | None
    fingerprint: str
    dataset: datasets.Dataset | None = None
    """None: it is in the file."""


class _Damaged(Exception):
    """An entry that cannot be used; says why."""


def folder_of(option: str | None) -> Path | None:
    """The folder of all entries: the one asked for, else `sartor` in the cache of `datasets`; None where it is off."""
    if option == OFF:
        return None
    if option is not None:
        return Path(option).expanduser()
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "sartor"


def cached(key: str, folder: Path, make: Callable[[Path | None], Made], say: Say) -> PreparedData:
    """Prepared data from the cache, or made and kept there.

    Args:
        key: names everything that the data depends on.
        make: prepares, in memory, or in the folder that it is given.
        say: tells the user what happens to the cache.
    """
    entry = folder / key
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder / f"{key}.lock", say))
        except OSError as error:
            return _in_memory(make, folder, error, say)
        found = _found(entry, say)
        if found is not None:
            note = f"Taken from the cache: {entry}."
            return replace(found, summary=replace(found.summary, notes=(*found.summary.notes, note)))
        building = folder / f"{key}.building"
        try:
            # What is there was left by a process that was killed, and a damaged entry has been said.
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(entry, ignore_errors=True)
            building.mkdir()
            _keep(make(building), building)
            building.rename(entry)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            return _in_memory(make, folder, error, say)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return _read(entry)


def in_memory(made: Made) -> PreparedData:
    """Prepared data that is not kept."""
    assert made.dataset is not None
    return PreparedData(made.dataset, made.summary, made.places)


def _in_memory(make: Callable[[Path | None], Made], folder: Path, error: OSError, say: Say) -> PreparedData:
    reason = error.strerror or str(error)
    say(f"The cache {folder} cannot be written ({reason}): the data is prepared in memory. See data_cache.")
    return in_memory(make(None))


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


def _found(entry: Path, say: Say) -> PreparedData | None:
    """The entry, where there is one that is whole; says so where it is not."""
    if not entry.exists():
        return None
    try:
        return _read(entry)
    except _Damaged as error:
        say(f"The cached data in {entry} is damaged ({error}): it is made again.")
        return None


def _keep(made: Made, folder: Path) -> None:
    """Write what belongs to an entry besides its data; the manifest last."""
    if made.places is not None:
        _write_places(made.places, folder / PLACES)
    names = [name for name in (DATA, PLACES) if (folder / name).exists()]
    files = {name: {"bytes": (folder / name).stat().st_size, "xxh3_128": _digest(folder / name)} for name in names}
    content: dict[str, Any] = {"summary": asdict(made.summary), "fingerprint": made.fingerprint, "files": files}
    if made.places is not None:
        content["sources"] = made.places.sources
    content["xxh3_128"] = _digest_of(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(entry: Path) -> PreparedData:
    import datasets

    content = _manifest(entry)
    for name, expected in content["files"].items():
        path = entry / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise _Damaged(f"{name} is not as long as it was written")
        if _digest(path) != expected["xxh3_128"]:
            raise _Damaged(f"{name} has another checksum")
    table = datasets.table.MemoryMappedTable.from_file(str(entry / DATA))
    dataset = datasets.Dataset(table, fingerprint=content["fingerprint"])
    places = None
    if PLACES in content["files"]:
        places = _read_places(entry / PLACES, tuple((source, kind) for source, kind in content["sources"]))
    return PreparedData(dataset, _summary_of(content["summary"]), places)


def _manifest(entry: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        digest = content.pop("xxh3_128")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if digest != _digest_of(content):
        raise _Damaged(f"{MANIFEST} has another checksum")
    return content


def _summary_of(content: dict[str, Any]) -> DataSummary:
    """The summary; JSON has lists where it has tuples."""
    values = {name: _as_tuples(value) for name, value in content.items()}
    values["format"] = RowFormat(values["format"])
    assert set(values) == {entry.name for entry in fields(DataSummary)}
    return DataSummary(**values)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _write_places(places: Places, path: Path) -> None:
    import pyarrow

    columns = {"source": places.source_numbers, "number": places.row_numbers}
    if places.offsets is not None:  # a block's places as one list
        offsets = pyarrow.array(places.offsets)
        columns = {
            name: pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(values)) for name, values in columns.items()
        }
    table = pyarrow.table(columns)
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _read_places(path: Path, sources: tuple[tuple[str, str], ...]) -> Places:
    import numpy as np
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        table = pyarrow.ipc.open_stream(file).read_all().combine_chunks()
    columns = [table.column(name).combine_chunks() for name in ("source", "number")]
    offsets = None
    if pyarrow.types.is_large_list(columns[0].type):
        offsets = np.asarray(columns[0].offsets, np.int64)
        columns = [column.values for column in columns]
    source_numbers, row_numbers = (np.asarray(column, np.int32) for column in columns)
    return Places(sources, source_numbers, row_numbers, offsets)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        _feed(digest, file)
    return digest.hexdigest()


def _feed(digest: Any, file: IO[bytes]) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])


def _digest_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, default=os.fspath).encode())
