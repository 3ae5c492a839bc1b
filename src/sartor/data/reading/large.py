"""Reads files that are too large for memory: once into an Arrow file on disk, which is mapped into memory from then on.

What comes in: files of one kind, and where the cache is.  What goes out: a `datasets.Dataset` that takes no memory of
its own.  What it keeps true: its rows, columns and places are those that the files would have in memory; it is made
again where the content of a file, its name or the reading code has changed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import xxhash

from sartor.data import entries
from sartor.data.entries import Damaged, digest_of_file, folder_of, found_or_made, removed_with, temporary_folder
from sartor.data.reading.tables import OUR_COLUMNS, WHERE_COLUMN
from sartor.errors import DataError, SartorWarning

if TYPE_CHECKING:
    import datasets
    import pyarrow

Files = Sequence[tuple[Path, str]]
"""Each with the name that its rows' places have."""

UNPACKED = 8
"""How much larger text becomes when it is unpacked, about."""
_ROWS, _MANIFEST = "rows.arrow", "manifest.json"
_ROWS_AT_A_TIME = 2_000


def is_large(files: Files) -> bool:
    """Whether files of text, or Parquet files, hold more than should be in memory, where it becomes up to twice as
    much."""
    return sum(map(_unpacked_bytes, (path for path, _ in files))) >= entries.LARGE_BYTES


def _unpacked_bytes(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    num_bytes = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        return UNPACKED * num_bytes
    if path.name.lower().endswith(".parquet"):
        try:
            content = pyarrow.parquet.read_metadata(path)
        except pyarrow.ArrowException:
            return num_bytes  # whoever reads it says what is wrong
        return sum(content.row_group(number).total_byte_size for number in range(content.num_row_groups))
    return num_bytes


def on_disk(files: Files, option: str | None, write: Callable[[Path], int]) -> datasets.Dataset:
    """Rows of files as a data set that is mapped into memory.

    Args:
        files: what is read.
        option: `data_cache`: where the rows are kept; `none`: in a temporary folder, for as long as they are used.
        write: writes them as an Arrow stream to the path, and returns their number.

    Raises:
        DataError: no row, rows that no data set can hold, or no folder for them can be written.
    """
    folder = folder_of(option)
    key = _key_of(files)
    if folder is not None:
        try:
            return found_or_made(key, folder, _read, lambda building: _keep(write, building), _say)[0]
        except OSError as error:
            _say(f"{files[0][0]} is large, and the cache {folder} cannot be written ({error.strerror or error}).")
    temporary = temporary_folder("sartor-rows-")
    try:
        _keep(write, temporary)
        dataset = _read(temporary, True)
    except OSError as error:
        rmtree(temporary, ignore_errors=True)
        raise DataError(
            f"{files[0][0]} is too large for memory, and cannot be kept in {temporary.parent} "
            f"({error.strerror or error})"
            ": give data_cache a folder with room for it."
        ) from error
    except BaseException:
        rmtree(temporary, ignore_errors=True)
        raise
    removed_with(dataset.data, temporary)
    return dataset


def _say(message: str) -> None:
    warnings.warn(message, SartorWarning, stacklevel=2)


def _keep(write: Callable[[Path], int], folder: Path) -> None:
    num_rows = write(folder / _ROWS)
    content = {"num_rows": num_rows, "xxh3_128": digest_of_file(folder / _ROWS)}
    (folder / _MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def _read(entry: Path, is_new: bool) -> datasets.Dataset:
    """The rows of an entry; what this process has just written and hashed is not hashed again."""
    import datasets

    try:
        content = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        digest = content["xxh3_128"] if is_new else digest_of_file(entry / _ROWS)
    except (OSError, ValueError) as error:
        raise Damaged(str(error)) from error
    if digest != content.get("xxh3_128"):
        raise Damaged(f"{_ROWS} has another checksum")
    table = datasets.table.MemoryMappedTable.from_file(str(entry / _ROWS))
    return datasets.Dataset(table, fingerprint=digest)


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


def write_parquet(files: Files, path: Path) -> int:
    """Rows of Parquet files as an Arrow stream with their places, some at a time; returns their number.

    Raises:
        DataError: a file cannot be read, or they do not fit in one table.
    """
    import pyarrow

    opened = [_parquet_file(file) for file, _ in files]
    try:
        schema = pyarrow.unify_schemas([each.schema_arrow for each in opened], promote_options="default")
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{files[0][0]} and other files do not fit in one table: {error}. Give columns of one name the same type."
        ) from error
    schema = pyarrow.schema([field for field in schema if field.name not in OUR_COLUMNS], schema.metadata)
    num_rows = 0
    with path.open("wb") as sink, pyarrow.ipc.new_stream(sink, _with_where(schema)) as writer:
        for (_, name), each in zip(files, opened, strict=True):
            for table in _with_places(each, schema, name):
                writer.write_table(table)
                num_rows += len(table)
    return num_rows


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error


def _with_where(schema: pyarrow.Schema) -> pyarrow.Schema:
    """The schema with the column of places, and with what `datasets` knows of the others."""
    import datasets
    import pyarrow

    features = datasets.Features.from_arrow_schema(schema)
    features[WHERE_COLUMN] = datasets.Value("string")
    return pyarrow.schema([*schema, pyarrow.field(WHERE_COLUMN, pyarrow.string())], features.arrow_schema.metadata)


def _with_places(file: Any, schema: pyarrow.Schema, name: str) -> Iterator[pyarrow.Table]:
    """Rows of a Parquet file in the columns of all files, some at a time."""
    import pyarrow

    empty, first = schema.empty_table(), 0
    columns = [column for column in schema.names if column in file.schema_arrow.names]
    for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns):
        table = pyarrow.concat_tables([empty, pyarrow.Table.from_batches([batch])], promote_options="default")
        places = [f"{name}, row {number}" for number in range(first, first + len(batch))]
        yield table.select(schema.names).append_column(WHERE_COLUMN, pyarrow.array(places, "string"))
        first += len(batch)
