"""Reads files of rows: text files line by line (`text_files`), Parquet and Arrow files as tables (`table_files`).

What comes in: paths of files of one kind.  What goes out: one `datasets.Dataset` with all their columns and rows, in
order, each with its place (`tables.WHERE_COLUMN`); rows that cannot be read keep their place with what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.data.reading.large import is_large, on_disk
from sartor.data.reading.table_files import tables_of
from sartor.data.reading.tables import WHERE_COLUMN, dataset_of, write_rows
from sartor.data.reading.text_files import EXAMPLE_ROW, OPENERS, packing_of, read_text
from sartor.errors import DataError
from sartor.records import Problem, Row

if TYPE_CHECKING:
    import datasets

__all__ = ["SUFFIXES", "WHERE_COLUMN", "kind_of", "read_files"]

KINDS = {
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
}
"""What files hold, by their suffix."""
TABLE_SUFFIXES = (".parquet", ".arrow")
SUFFIXES = tuple(KINDS)


def kind_of(path: Path) -> str | None:
    """The suffix that decides how a file is read, in lower case, whatever packs it; None where it is none of ours."""
    packing = packing_of(path)
    name = path.name.lower().removesuffix(packing)
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if packing and suffix in TABLE_SUFFIXES else suffix


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
            f"{path} is of no kind that can be read. Its name should end in {', '.join(SUFFIXES)} "
            f"({', '.join(OPENERS)} may follow the text kinds)."
        )
    try:
        is_table = suffix in TABLE_SUFFIXES
        if suffix != ".arrow" and is_large(files):
            dataset = on_disk(
                files,
                data_cache,
                lambda path: _write_tables(files, path) if is_table else write_rows(_text_rows(files), path),
            )
        else:
            dataset = _in_memory(files) if is_table else dataset_of(_text_rows(files))
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Check the path, its permissions and that it is whole."
        ) from error
    if not len(dataset):
        example = "" if is_table else f" Write one row per line, for example {EXAMPLE_ROW}"
        raise DataError(f"{_named(files)} has no rows.{example}")
    return dataset


def _named(files: Sequence[tuple[Path, str]]) -> str:
    return str(files[0][0]) if len(files) == 1 else f"{files[0][0].parent} ({len(files)} files)"


def _text_rows(files: Sequence[tuple[Path, str]]) -> Iterator[Row | Problem]:
    for path, name in files:
        suffix = kind_of(path)
        assert suffix is not None
        yield from read_text(path, suffix, name)


def _in_memory(files: Sequence[tuple[Path, str]]) -> datasets.Dataset:
    """The rows of files that hold tables."""
    import datasets
    import pyarrow

    schema, tables = tables_of(files)
    table = pyarrow.Table.from_batches([batch for table in tables for batch in table.to_batches()], schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _write_tables(files: Sequence[tuple[Path, str]], path: Path) -> None:
    """The same, as an Arrow stream in a file."""
    import pyarrow

    schema, tables = tables_of(files)
    with path.open("wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)
