"""Reads files of rows: text files line by line (`text_files`), Parquet and Arrow files as the tables they are.

What comes in: paths of files of one kind.  What goes out: one `datasets.Dataset` with all their columns and rows, in
order, each with its place (`tables.WHERE_COLUMN`); rows that cannot be read keep their place with what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.reading.large import is_large, on_disk, write_parquet
from sartor.data.reading.tables import OUR_COLUMNS, WHERE_COLUMN, dataset_of, places_column, with_places, write_rows
from sartor.data.reading.text_files import EXAMPLE_ROW, read_text
from sartor.errors import DataError
from sartor.records import Problem, Row

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = ["SUFFIXES", "WHERE_COLUMN", "kind_of", "read_files"]

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLE_SUFFIXES = (".parquet", ".arrow")
SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES
_IPC_MAGIC = b"ARROW1"


def kind_of(path: Path) -> str | None:
    """The suffix that decides how a file is read, in lower case and without `.gz`; None where it is not one of ours."""
    name = path.name.lower()
    text = name.removesuffix(".gz")
    known = SUFFIXES if text == name else TEXT_SUFFIXES
    return next((suffix for suffix in known if text.endswith(suffix)), None)


def read_files(files: Sequence[tuple[Path, str]], data_cache: str | None = None) -> datasets.Dataset:
    """Read files of one kind, each with the name that its rows' places have.

    Rows of large files are kept on disk (see `large`), where `data_cache` says.

    A line that is no row becomes a row with its problem (`tables.PROBLEM_COLUMN`), which is told, or skipped, together
    with the rows that can be read but not used.

    Raises:
        DataError: a file cannot be read, is no such file as its name says, or there are no rows.
    """
    path = files[0][0]
    suffix = kind_of(path)
    if suffix is None:
        raise DataError(
            f"{path} is of no kind that can be read. Its name should end in {', '.join(SUFFIXES)} (.gz may follow the "
            "text kinds)."
        )
    try:
        is_table = suffix in TABLE_SUFFIXES
        if suffix != ".arrow" and is_large(files):
            dataset = on_disk(files, data_cache, lambda path: _write(files, path, is_parquet=is_table))
        else:
            dataset = _read_tables(files) if is_table else dataset_of(_text_rows(files))
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Check the path, its permissions and that it is whole."
        ) from error
    if not len(dataset):
        example = "" if is_table else f" Write one row per line, for example {EXAMPLE_ROW}"
        raise DataError(f"{_named(files)} has no rows.{example}")
    return dataset


def _write(files: Sequence[tuple[Path, str]], path: Path, *, is_parquet: bool) -> int:
    """All rows as an Arrow stream in a file; returns their number."""
    return write_parquet(files, path) if is_parquet else write_rows(_text_rows(files), path)


def _named(files: Sequence[tuple[Path, str]]) -> str:
    return str(files[0][0]) if len(files) == 1 else f"{files[0][0].parent} ({len(files)} files)"


def _text_rows(files: Sequence[tuple[Path, str]]) -> Iterator[Row | Problem]:
    for path, name in files:
        suffix = kind_of(path)
        assert suffix is not None
        yield from read_text(path, suffix, name)


def _read_tables(files: Sequence[tuple[Path, str]]) -> datasets.Dataset:
    import datasets
    import pyarrow

    tables, places = [], []
    for path, name in files:
        tables.append(_table_of(path))
        places.extend(places_column(name, tables[-1].num_rows).chunks)
    table = _joined(tables, files)
    own = [name for name in table.column_names if name in OUR_COLUMNS]
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table.drop_columns(own)))
    return with_places(dataset, pyarrow.chunked_array(places, "string"))


def _table_of(path: Path) -> pyarrow.Table:
    """The table in a Parquet or Arrow file; Arrow's memory is the file's own, which is read where it is used."""
    import pyarrow
    import pyarrow.parquet

    kind = "a Parquet" if kind_of(path) == ".parquet" else "an Arrow"
    try:
        if kind == "a Parquet":
            return pyarrow.parquet.read_table(path, memory_map=True)
        with path.open("rb") as stream:
            is_file_format = stream.read(len(_IPC_MAGIC)) == _IPC_MAGIC
        open_ipc: Any = pyarrow.ipc.open_file if is_file_format else pyarrow.ipc.open_stream
        return open_ipc(pyarrow.memory_map(str(path))).read_all()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not {kind} file that can be read: {error}") from error


def _joined(tables: Sequence[pyarrow.Table], files: Sequence[tuple[Path, str]]) -> pyarrow.Table:
    """The tables' rows one after another; a column that only some have is None in the others."""
    import pyarrow

    if len(tables) == 1:
        return tables[0]
    try:
        return pyarrow.concat_tables(tables, promote_options="default")
    except pyarrow.ArrowException as error:
        first = tables[0].schema.remove_metadata()
        other = next(
            (path for table, (path, _) in zip(tables, files, strict=True) if table.schema.remove_metadata() != first),
            files[-1][0],
        )
        raise DataError(
            f"{files[0][0]} and {other} do not fit in one table: {error}. Give columns of one name the same type."
        ) from error
