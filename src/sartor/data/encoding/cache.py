"""Prepared data sets on disk, each under a key made of everything that it depends on.

What comes in: a key, and a function that prepares.  What goes out: prepared data, mapped into memory.  What it keeps
true: an entry is whole or not there, for it is written beside its place and renamed; a damaged one is found by its
checksums, said, and made again; one process prepares while others that want the same wait for it, however long it
takes; where nothing can be written the data is prepared in memory, and that is said.

An entry is a folder: `data.arrow` (a stream as `datasets` writes it), `places.arrow`, and `manifest.json` with the
summary and the checksums.  Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sartor.data.entries import Damaged, Say, digest_of_file, found_or_made, removed_with, temporary_folder
from sartor.data.reading.places import Places
from sartor.records import DataSummary, PreparedData, RowFormat

if TYPE_CHECKING:
    import datasets

DATA, PLACES, MANIFEST = "data.arrow", "places.arrow", "manifest.json"


@dataclass(frozen=True, slots=True)
class Made:
    """A data set that was prepared: in memory, or as the file `DATA` of a folder."""

    summary: DataSummary
    places: Places | None
    fingerprint: str
    dataset: datasets.Dataset | None = None
    """None: it is in the file."""


def cached(
    key: str, folder: Path, make: Callable[[Path | None], Made], say: Say, *, is_large: bool = False
) -> PreparedData:
    """Prepared data from the cache, or made and kept there.

    Args:
        key: names everything that the data depends on.
        make: prepares, in memory, or in the folder that it is given.
        say: tells the user what happens to the cache.
        is_large: whether it must not be in memory, even where the cache cannot be written.
    """

    def fill(building: Path) -> None:
        _keep(make(building), building)

    try:
        found, was_there = found_or_made(key, folder, _read, fill, say)
    except OSError as error:
        reason = error.strerror or str(error)
        where = "a temporary folder" if is_large else "memory"
        say(f"The cache {folder} cannot be written ({reason}): the data is prepared in {where}. See data_cache.")
        return not_kept(make, say, is_large=is_large)
    if not was_there:
        return found
    note = f"Taken from the cache: {folder / key}."
    return replace(found, summary=replace(found.summary, notes=(*found.summary.notes, note)))


def not_kept(make: Callable[[Path | None], Made], say: Say, *, is_large: bool) -> PreparedData:
    """Prepared data that no later run finds: in memory, or in a temporary folder where there is much of it."""
    folder = None
    if is_large:
        try:
            folder = temporary_folder("sartor-data-")
            made = make(folder)
        except OSError as error:
            say(f"No temporary folder can be written ({error.strerror or error}): the data is prepared in memory.")
            _remove(folder)
            folder = None
        except BaseException:
            _remove(folder)
            raise
        else:
            dataset = _mapped(folder / DATA, made.fingerprint)
            removed_with(dataset.data, folder)
            return PreparedData(dataset, made.summary, made.places, digest=made.fingerprint)
    made = make(folder)
    assert made.dataset is not None
    return PreparedData(made.dataset, made.summary, made.places, digest=made.fingerprint)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _mapped(path: Path, fingerprint: str) -> datasets.Dataset:
    import datasets

    return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint)


def _keep(made: Made, folder: Path) -> None:
    """Write what belongs to an entry besides its data; the manifest last."""
    if made.places is not None:
        _write_places(made.places, folder / PLACES)
    names = [name for name in (DATA, PLACES) if (folder / name).exists()]
    files = {
        name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest_of_file(folder / name)} for name in names
    }
    content: dict[str, Any] = {"summary": asdict(made.summary), "fingerprint": made.fingerprint, "files": files}
    if made.places is not None:
        content["sources"] = made.places.sources
    content["xxh3_128"] = _digest_of(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(entry: Path, is_new: bool) -> PreparedData:
    """An entry; one that this process has just written and hashed is not hashed again."""
    content = _manifest(entry)
    for name, expected in content["files"].items():
        path = entry / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise Damaged(f"{name} is not as long as it was written")
        if not is_new and digest_of_file(path) != expected["xxh3_128"]:
            raise Damaged(f"{name} has another checksum")
    dataset = _mapped(entry / DATA, content["fingerprint"])
    places = None
    if PLACES in content["files"]:
        places = _read_places(entry / PLACES, tuple((source, kind) for source, kind in content["sources"]))
    return PreparedData(dataset, _summary_of(content["summary"]), places, digest=content["fingerprint"])


def _manifest(entry: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        digest = content.pop("xxh3_128")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if digest != _digest_of(content):
        raise Damaged(f"{MANIFEST} has another checksum")
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


def _digest_of(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, default=os.fspath).encode())
