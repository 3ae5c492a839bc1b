"""Reads files that are too large for memory: once into an Arrow file on disk, which is mapped into memory from then on.

What comes in: files of one kind, and where the cache is.  What goes out: a `datasets.Dataset` that takes no memory of
its own.  What it keeps true: its rows, columns and places are those that the files would have in memory; it is made
again where the content of a file, its name or the reading code has changed.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from sartor.data import entries
from sartor.data.entries import Content, digest_of_file, folder_of, found_or_made, in_temporary_folder, removed_with
from sartor.data.reading.text_files import packing_of
from sartor.errors import DataError, SartorWarning

if TYPE_CHECKING:
    import datasets

Files = Sequence[tuple[Path, str]]
"""Each with the name that its rows' places have."""

UNPACKED = 8
"""How much larger text becomes when it is unpacked, about."""
_ROWS = "rows.arrow"


def is_large(files: Files) -> bool:
    """Whether files of text, or Parquet files, hold more than should be in memory, where it becomes up to twice as
    much."""
    return sum(map(_unpacked_bytes, (path for path, _ in files))) >= entries.LARGE_BYTES


def _unpacked_bytes(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    num_bytes = path.stat().st_size
    if packing_of(path):
        return UNPACKED * num_bytes
    if path.name.lower().endswith(".parquet"):
        try:
            content = pyarrow.parquet.read_metadata(path)
        except pyarrow.ArrowException:
            return num_bytes  # whoever reads it says what is wrong
        return sum(content.row_group(number).total_byte_size for number in range(content.num_row_groups))
    return num_bytes


def on_disk(files: Files, option: str | None, write: Callable[[Path], None]) -> datasets.Dataset:
    """Rows of files as a data set that is mapped into memory.

    Args:
        files: what is read.
        option: `data_cache`: where the rows are kept; `none`: in a temporary folder, for as long as they are used.
        write: writes them as an Arrow stream to the path.

    Raises:
        DataError: no row, rows that no data set can hold, or no folder for them can be written.
    """
    folder, key = folder_of(option), _key_of(files)

    def make(building: Path) -> Content:
        write(building / _ROWS)
        return {}

    def read(entry: Path, _: Content) -> datasets.Dataset:
        import datasets

        return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(entry / _ROWS)), fingerprint=key)

    if folder is not None:
        try:
            return found_or_made(key, folder, read, make, _say)[0]
        except OSError as error:
            _say(f"{files[0][0]} is large, and the cache {folder} cannot be written ({error.strerror or error}).")
    try:
        dataset, temporary = in_temporary_folder("sartor-rows-", read, make)
    except OSError as error:
        raise DataError(
            f"{files[0][0]} is too large for memory, and cannot be kept in {tempfile.gettempdir()} "
            f"({error.strerror or error}): give data_cache a folder with room for it."
        ) from error
    removed_with(dataset.data, temporary)
    return dataset


def _say(message: str) -> None:
    warnings.warn(message, SartorWarning, stacklevel=2)


def _key_of(files: Files) -> str:
    """Of everything that the rows and their places depend on: the files' contents and names, and how they are read."""
    named = [[name, path.suffixes[-2:], digest_of_file(path)] for path, name in files]
    return f"rows-{xxhash.xxh3_128_hexdigest(json.dumps([named, _code_digest()]).encode())}"


@cache
def _code_digest() -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
