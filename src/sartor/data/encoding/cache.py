"""Prepared data sets on disk, each under a key made of everything that it depends on.

What comes in: a key, and a function that prepares.  What goes out: prepared data, mapped into memory.  What it keeps
true: an entry is whole or not there, for it is written beside its place and renamed; a damaged one is found by its
checksums, said, and made again; one process prepares while others that want the same wait for it, however long it
takes; where nothing can be written the data is prepared in memory, and that is said.

An entry is a folder: `data.arrow` (a stream as `datasets` writes it), `places.arrow`, and `manifest.json` with the
summary and the checksums.  Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sartor.data.entries import Content, Say, found_or_made, in_temporary_folder, removed_with
from sartor.data.reading.places import Places
from sartor.records import DataSummary, PreparedData, RowFormat

DATA, PLACES = "data.arrow", "places.arrow"

Make = Callable[[Path | None], PreparedData]
"""Prepares: in memory, or in the folder that it is given; there the data set is the file `DATA`, and None here."""


def cached(key: str, folder: Path, make: Make, say: Say, *, is_large: bool = False) -> PreparedData:
    """Prepared data from the cache, or made and kept there.

    Args:
        key: names everything that the data depends on.
        say: tells the user what happens to the cache.
        is_large: whether it must not be in memory, even where the cache cannot be written.
    """
    try:
        found, was_there = found_or_made(key, folder, _read, lambda building: _keep(make(building), building), say)
    except OSError as error:
        reason = error.strerror or str(error)
        where = "a temporary folder" if is_large else "memory"
        say(f"The cache {folder} cannot be written ({reason}): the data is prepared in {where}. See data_cache.")
        return not_kept(make, say, is_large=is_large)
    if not was_there:
        return found
    note = f"Taken from the cache: {folder / key}."
    return replace(found, summary=replace(found.summary, notes=(*found.summary.notes, note)))


def not_kept(make: Make, say: Say, *, is_large: bool) -> PreparedData:
    """Prepared data that no later run finds: in memory, or in a temporary folder where there is much of it."""
    if is_large:
        try:
            found, folder = in_temporary_folder("sartor-data-", _read, lambda building: _keep(make(building), building))
        except OSError as error:
            say(f"No temporary folder can be written ({error.strerror or error}): the data is prepared in memory.")
        else:
            removed_with(found.dataset.data, folder)
            return found
    return make(None)


def _keep(made: PreparedData, folder: Path) -> Content:
    """Write what belongs to an entry besides its data."""
    _write_places(made.places, folder / PLACES)
    return {"summary": asdict(made.summary), "fingerprint": made.digest, "sources": made.places.sources}


def _read(entry: Path, content: Content) -> PreparedData:
    import datasets

    digest, sources = content["fingerprint"], tuple((source, kind) for source, kind in content["sources"])
    dataset = datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(entry / DATA)), fingerprint=digest)
    places = _read_places(entry / PLACES, sources)
    return PreparedData(dataset, _summary_of(content["summary"]), places, digest=digest)


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
