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
from typing import TYPE_CHECKING, Any

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


def problem_text(problem: Problem) -> str:
    """A problem as `PROBLEM_COLUMN` holds it."""
    return json.dumps([problem.kind, problem.message, problem.excerpt])


def problem_of(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(kind, message, excerpt) of a row that could not be read; None of any other."""
    text = row.get(PROBLEM_COLUMN)
    if text is None:
        return None
    kind, message, excerpt = json.loads(text)
    return kind, message, excerpt


def dataset_of(rows: Iterable[Row | Problem], *, with_where: bool = True) -> datasets.Dataset:
    """A data set of these rows, with every column that any of them has; a row without it has None there.

    Values of different types in one column are kept as they are (as JSON), so that a later check can name the row.

    Raises:
        DataError: values that no data set can hold.
    """
    import datasets
    import pyarrow

    chunks = [_chunk(part, with_where=with_where) for part in batched(rows, ROWS_PER_CHUNK)]
    features: dict[str, Any] = {}
    for chunk in chunks:
        for name, column in chunk.items():
            features[name] = column.feature if name not in features else _common(features[name], column.feature)
    own = [name for name in features if name in OUR_COLUMNS]
    features = {name: features[name] for name in [*(name for name in features if name not in own), *own]}
    schema = datasets.Features(features).arrow_schema
    batches = [
        pyarrow.RecordBatch.from_arrays(
            [
                _fitted(chunk.get(name), feature, schema.field(name).type, num_rows)
                for name, feature in features.items()
            ],
            schema=schema,
        )
        for chunk, num_rows in ((chunk, len(next(iter(chunk.values())).values)) for chunk in chunks if chunk)
    ]
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.Table.from_batches(batches, schema)))


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


def with_places(dataset: datasets.Dataset, places: Any) -> datasets.Dataset:
    """The data set with its rows' places in `WHERE_COLUMN`."""
    if WHERE_COLUMN in dataset.column_names:
        dataset = dataset.remove_columns(WHERE_COLUMN)
    return dataset.add_column(WHERE_COLUMN, places)
