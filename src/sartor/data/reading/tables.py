"""Rows as an Arrow table: built a chunk at a time, so that only one chunk of Python objects is in memory.

What comes in: rows, and problems in the place of rows that could not be read.  What goes out: a `datasets.Dataset` with
every column that any row has, and two more.  `WHERE_COLUMN` says for each row where it stands ("train.jsonl, line 12");
it survives filtering, shuffling and joining, and is left out of what is trained.  `PROBLEM_COLUMN`, which is there only
where something could not be read, keeps the place of such a row, so that every later count and number is right.  What
it keeps true: values come back as they were read, text that looks like a number too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.reading.problems import ProblemLog
from sartor.errors import DataError
from sartor.records import Problem, Row

if TYPE_CHECKING:
    import datasets
    import pyarrow

WHERE_COLUMN = "__where__"
"""Column of data sets read from files: each row's file and line."""
PROBLEM_COLUMN = "__problem__"
"""Column that tells, as JSON, what is wrong with rows that could not be read; None for all others."""
OUR_COLUMNS = (WHERE_COLUMN, PROBLEM_COLUMN)
ROWS_PER_CHUNK = 20_000
CHARACTERS_PER_WRITTEN_CHUNK = 1 << 24
"""Of a file that is too large for memory, whose rows may be few and long."""


def problem_text(problem: Problem) -> str:
    """A problem as `PROBLEM_COLUMN` holds it."""
    return json.dumps([problem.kind, problem.message, problem.excerpt])


def is_readable(row: Mapping[str, Any], where: str, problems: ProblemLog) -> bool:
    """Whether a row could be read; what was wrong with any other is noted as the reader has found it."""
    text = row.get(PROBLEM_COLUMN)
    if text is None:
        return True
    kind, message, excerpt = json.loads(text)
    problems.add(kind, where, message, excerpt)
    return False


def place_of(row: Mapping[str, Any], number: int, name: str) -> str:
    """Where a row stands, for messages: file and line where known, else its number in the data set, from 0."""
    return row.get(WHERE_COLUMN) or f"{name} data, row {number}"


def batches_of(dataset: Any, size: int, name: str) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
    """All rows, so many at a time, each with where it stands (see `place_of`)."""
    first = 0
    for batch in dataset.iter(size):
        rows = rows_of(batch)
        yield rows, places_of(rows, first, name)
        first += len(rows)


def rows_of(batch: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The rows of a batch of columns."""
    names = list(batch)
    return [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def places_of(rows: Sequence[Mapping[str, Any]], first: int, name: str) -> list[str]:
    """Where rows stand (see `place_of`), of which the first has this number."""
    return [place_of(row, number, name) for number, row in enumerate(rows, first)]


def dataset_of(rows: Iterable[Row | Problem], *, with_where: bool = True) -> datasets.Dataset:
    """A data set of these rows, with every column that any of them has; a row without it has None there.

    Values of different types in one column are kept as they are (as JSON), so that a later check can name the row.

    Raises:
        DataError: values that no data set can hold.
    """
    import datasets
    import pyarrow

    chunks = [_chunk(part, with_where=with_where) for part in batched(rows, ROWS_PER_CHUNK)]
    features = _common_features({name: column.feature for name, column in chunk.items()} for chunk in chunks)
    schema = datasets.Features(features).arrow_schema
    batches = [_record_batch(chunk, features, schema) for chunk in chunks if chunk]
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.Table.from_batches(batches, schema)))


def write_rows(rows: Iterable[Row | Problem], path: Path) -> None:
    """The same, as an Arrow stream in a file, with some megabytes of rows in memory at a time.

    What the columns are is only known at the end, so chunks are first written as they come, beside the file.

    Raises:
        DataError: values that no data set can hold.
        OSError: the disk is full.
    """
    import datasets
    import pyarrow

    passing = path.with_suffix(".passing")
    kept: list[tuple[int, dict[str, Any]]] = []
    with passing.open("wb") as file:
        for part in _batched_by_size(rows, CHARACTERS_PER_WRITTEN_CHUNK):
            chunk = _chunk(part, with_where=True)
            table = pyarrow.table([column.values for column in chunk.values()], names=list(chunk))
            kept.append((file.tell(), {name: column.feature for name, column in chunk.items()}))
            with pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    features = _common_features(of_chunk for _, of_chunk in kept)
    schema = datasets.Features(features).arrow_schema
    with (
        pyarrow.memory_map(str(passing)) as source,
        path.open("wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        for start, of_chunk in kept:
            source.seek(start)
            table = pyarrow.ipc.open_stream(source).read_all().combine_chunks()
            chunk = {name: _Column(_array(table.column(name)), feature) for name, feature in of_chunk.items()}
            writer.write_batch(_record_batch(chunk, features, schema))
    passing.unlink()


def _array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """A column of one chunk, as one array."""
    import pyarrow

    return column.chunk(0) if column.num_chunks else pyarrow.array([], column.type)


def _common_features(of_chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of all chunks, each with a feature that holds the values of every chunk; ours last."""
    features: dict[str, Any] = {}
    for chunk in of_chunks:
        for name, feature in chunk.items():
            features[name] = feature if name not in features else _common(features[name], feature)
    own = [name for name in features if name in OUR_COLUMNS]
    return {name: features[name] for name in [*(name for name in features if name not in own), *own]}


def _record_batch(chunk: Mapping[str, _Column], features: Mapping[str, Any], schema: Any) -> pyarrow.RecordBatch:
    """A chunk as the whole table has it."""
    import pyarrow

    num_rows = len(next(iter(chunk.values())).values)
    columns = [
        _fitted(chunk.get(name), feature, schema.field(name).type, num_rows) for name, feature in features.items()
    ]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive rows in lists of `size`; the last may be shorter."""
    part: list[Any] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _batched_by_size(rows: Iterable[Row | Problem], num_characters: int) -> Iterator[list[Row | Problem]]:
    """Consecutive rows in lists of about so many characters, and `ROWS_PER_CHUNK` at most."""
    part: list[Row | Problem] = []
    size = 0
    for row in rows:
        part.append(row)
        size += _num_characters(row.columns) if isinstance(row, Row) else 0
        if size >= num_characters or len(part) == ROWS_PER_CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


def _num_characters(value: Any) -> int:
    """Of all texts in a value, with a few for everything else."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_characters, value.values()))
    return sum(map(_num_characters, value)) if isinstance(value, list) else 8


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of a chunk: its Arrow values, and the feature that says how they are read."""

    values: pyarrow.Array
    feature: Any


def _chunk(rows: Sequence[Row | Problem], *, with_where: bool) -> dict[str, _Column]:
    columns = [row.columns if isinstance(row, Row) else {} for row in rows]
    names = dict.fromkeys(name for row in columns for name in row if name not in OUR_COLUMNS)
    try:
        chunk = {str(name): _column([row.get(name) for row in columns]) for name in names}
    except (ArithmeticError, TypeError, ValueError) as error:  # pyarrow's errors are among these
        raise DataError(f"{rows[0].where}: the rows from here on do not fit in one table: {error}") from error
    if with_where:
        chunk[WHERE_COLUMN] = _column([row.where for row in rows])
    if any(isinstance(row, Problem) for row in rows):
        chunk[PROBLEM_COLUMN] = _column([problem_text(row) if isinstance(row, Problem) else None for row in rows])
    return chunk


def _column(values: list[Any]) -> _Column:
    """Typed where all values are of one type and all objects have the same keys; else as JSON."""
    import datasets
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return _Column(pyarrow.nulls(len(values)), datasets.Value("null"))
    if len(kinds) == 1 and kinds <= {str, bool, int, float}:
        array = pyarrow.array(values)
        return _Column(array, datasets.Value(str(array.type)))
    if kinds <= {list, dict} or not kinds & {str, bool, int, float, list, dict}:
        plain = datasets.Dataset.from_dict({"": values}, on_mixed_types="use_json")
        feature = plain.features[""]
        if not _has_json(feature):
            return _Column(plain.data.column("").combine_chunks(), feature)
    return _json_column(values, is_list=kinds == {list})


def _has_json(feature: Any) -> bool:
    return "Json(" in repr(feature)


def _json_column(values: Sequence[Any], *, is_list: bool) -> _Column:
    """Values as JSON text, those of lists one by one.

    Not `datasets`' own encoding, which takes text that happens to be JSON, such as "72", for what it says.
    """
    import datasets
    import pyarrow

    if not is_list:
        return _Column(_json_array(values), datasets.Json())
    ends: list[int] = [0]
    items: list[Any] = []
    for value in values:
        items.extend(value or ())
        ends.append(len(items))
    offsets = pyarrow.array(ends, pyarrow.int32())
    is_missing = pyarrow.array([value is None for value in values])
    lists = pyarrow.ListArray.from_arrays(offsets, _json_array(items), mask=is_missing)
    return _Column(lists, datasets.List(datasets.Json()))


def _json_array(values: Sequence[Any]) -> pyarrow.Array:
    import pyarrow

    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(texts, pyarrow.string()))


def _common(one: Any, other: Any) -> Any:
    """The feature that holds the values of both."""
    import datasets

    if one == other or other == datasets.Value("null"):
        return one
    if one == datasets.Value("null"):
        return other
    is_list = all(isinstance(feature, (datasets.List, list)) for feature in (one, other))
    return datasets.List(datasets.Json()) if is_list else datasets.Json()


def _fitted(column: _Column | None, feature: Any, kind: pyarrow.DataType, num_rows: int) -> pyarrow.Array:
    """A chunk's column as the whole table has it."""
    import datasets
    import pyarrow

    if column is None or column.feature == datasets.Value("null"):
        return pyarrow.nulls(num_rows, kind)
    if column.feature == feature:
        return column.values
    table = pyarrow.table([column.values], schema=datasets.Features({"": column.feature}).arrow_schema)
    values = datasets.Dataset(datasets.table.InMemoryTable(table))[:][""]
    return _json_column(list(values), is_list=isinstance(feature, datasets.List)).values


def places_column(source: str, num_rows: int, first: int = 0) -> Any:
    """The places of rows of a source without lines, made some at a time: text takes less room in Arrow."""
    import pyarrow

    end = first + num_rows
    chunks = [
        pyarrow.array([f"{source}, row {number}" for number in range(start, min(start + ROWS_PER_CHUNK, end))])
        for start in range(first, end, ROWS_PER_CHUNK)
    ]
    return pyarrow.chunked_array(chunks, "string")
