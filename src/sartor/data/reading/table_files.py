"""Reads files that hold tables: Parquet and Arrow, some rows at a time.

What comes in: files of one kind.  What goes out: the columns of all of them, and tables with these columns and their
rows' places, in order.  What it keeps true: a column that only some files have is None in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.reading.tables import OUR_COLUMNS, WHERE_COLUMN, places_column
from sartor.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_IPC_MAGIC = b"ARROW1"
_ROWS_AT_A_TIME = 2_000


def tables_of(files: Sequence[tuple[Path, str]]) -> tuple[pyarrow.Schema, Iterator[pyarrow.Table]]:
    """The columns of all files, and their rows in these columns, some at a time.

    Args:
        files: each with the name that its rows' places have.

    Raises:
        DataError: a file cannot be read, or they do not fit in one table.
    """
    import pyarrow

    schemas = [_schema_of(path) for path, _ in files]
    try:
        schema = pyarrow.unify_schemas(schemas, promote_options="default")
    except pyarrow.ArrowException as error:
        plain = [schema.remove_metadata() for schema in schemas]
        other = next((path for own, (path, _) in zip(plain, files, strict=True) if own != plain[0]), files[-1][0])
        raise DataError(
            f"{files[0][0]} and {other} do not fit in one table: {error}. Give columns of one name the same type."
        ) from error
    schema = pyarrow.schema([field for field in schema if field.name not in OUR_COLUMNS], schema.metadata)

    def rows() -> Iterator[pyarrow.Table]:
        for path, name in files:
            with _opened(path) as (_, tables):
                yield from _placed(tables, schema, name)

    return _with_where(schema), rows()


def _schema_of(path: Path) -> pyarrow.Schema:
    with _opened(path) as (schema, _):
        return schema


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.Table]]]:
    """A file's columns, and its rows; Arrow's memory is the file's own, which is read where it is used.

    There may be more files than may be open at once.
    """
    import pyarrow
    import pyarrow.parquet

    is_parquet = path.name.lower().endswith(".parquet")
    try:
        if is_parquet:
            with pyarrow.parquet.ParquetFile(path) as file:
                yield file.schema_arrow, map(_table_of, file.iter_batches(_ROWS_AT_A_TIME))
            return
        with path.open("rb") as stream:
            is_file_format = stream.read(len(_IPC_MAGIC)) == _IPC_MAGIC
        open_ipc: Any = pyarrow.ipc.open_file if is_file_format else pyarrow.ipc.open_stream
        with pyarrow.memory_map(str(path)) as source, open_ipc(source) as reader:
            yield reader.schema, _whole(reader)
    except pyarrow.ArrowException as error:
        kind = "a Parquet" if is_parquet else "an Arrow"
        raise DataError(f"{path} is not {kind} file that can be read: {error}") from error


def _whole(reader: Any) -> Iterator[pyarrow.Table]:
    yield reader.read_all()


def _table_of(batch: pyarrow.RecordBatch) -> pyarrow.Table:
    import pyarrow

    return pyarrow.Table.from_batches([batch])


def _with_where(schema: pyarrow.Schema) -> pyarrow.Schema:
    """The schema with the column of places, and with what `datasets` knows of the others."""
    import datasets
    import pyarrow

    features = datasets.Features.from_arrow_schema(schema)
    features[WHERE_COLUMN] = datasets.Value("string")
    return pyarrow.schema([*schema, pyarrow.field(WHERE_COLUMN, pyarrow.string())], features.arrow_schema.metadata)


def _placed(tables: Iterator[pyarrow.Table], schema: pyarrow.Schema, name: str) -> Iterator[pyarrow.Table]:
    """Rows of one file in the columns of all files, with their places."""
    import pyarrow

    empty, first = schema.empty_table(), 0
    for table in tables:
        own = [column for column in schema.names if column in table.column_names]
        whole = pyarrow.concat_tables([empty, table.select(own)], promote_options="default").select(schema.names)
        yield whole.append_column(WHERE_COLUMN, places_column(name, len(table), first))
        first += len(table)
