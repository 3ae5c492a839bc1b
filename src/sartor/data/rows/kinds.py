"""What a row is, told by which of its columns are filled: counted over all rows, so that none is taken for another.

What comes in: a data set, or some rows of a stream.  What goes out: for each kind of row, how many there are and where
the first stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.tables import PROBLEM_COLUMN, WHERE_COLUMN, place_of

if TYPE_CHECKING:
    import datasets
    import pyarrow

ROWS_AT_ONCE = 50_000
TELLING_COLUMNS = ("input_ids", "prompt", "completion", "messages", "conversations", "instruction", "output")
"""Columns that tell what a row is, besides the one that holds plain text."""


class Kind(StrEnum):
    """Kinds of rows, as they are named aloud."""

    TOKENIZED = "input_ids"
    PROMPT_COMPLETION = "prompt + completion"
    MESSAGES_PROMPT_COMPLETION = "prompt + completion, as messages"
    MESSAGES = "messages"
    CONVERSATIONS = "ShareGPT conversations"
    TEXT = "text"
    ALPACA = "Alpaca's instruction + output"


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one kind."""

    kind: Kind
    num_rows: int
    first: str
    """Where the first of them stands."""


def kind_of(filled: Collection[str], is_messages: bool, text_column: str) -> Kind | None:
    """The kind of a row, given which of its columns have a value; None where they mean nothing to us.

    Args:
        filled: names of columns.
        is_messages: whether the prompt or the completion is a list.
        text_column: the column that holds plain text.
    """
    if "input_ids" in filled:
        return Kind.TOKENIZED
    if "prompt" in filled and "completion" in filled:
        return Kind.MESSAGES_PROMPT_COMPLETION if is_messages else Kind.PROMPT_COMPLETION
    if "messages" in filled:
        return Kind.MESSAGES
    if "conversations" in filled:
        return Kind.CONVERSATIONS
    if text_column in filled:
        return Kind.TEXT
    return Kind.ALPACA if "instruction" in filled and "output" in filled else None


def kind_of_row(row: Mapping[str, Any], text_column: str) -> Kind | None:
    """The kind of one row; None where its columns mean nothing to us."""
    filled = [name for name, value in row.items() if value is not None]
    return kind_of(filled, isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list), text_column)


def kinds_of_dataset(dataset: datasets.Dataset, text_column: str, name: str) -> list[Found]:
    """The kinds of all rows, the most frequent first; read off the table, without a Python object for each row."""
    telling = dict.fromkeys((*TELLING_COLUMNS, text_column))
    names = [column for column in telling if column in dataset.column_names]
    if not names:
        return []
    where_column = [WHERE_COLUMN] if WHERE_COLUMN in dataset.column_names else []
    found: dict[Kind, Found] = {}
    first = 0
    for batch in dataset.select_columns([*names, *where_column]).with_format("arrow").iter(ROWS_AT_ONCE):
        # One bit for each column that is filled, and one for messages in prompt or completion.
        codes = np.zeros(batch.num_rows, np.int64)
        for bit, column in enumerate(names):
            codes |= np.asarray(batch.column(column).is_valid()).astype(np.int64) << bit
        is_messages = np.zeros(batch.num_rows, bool)
        for column in {"prompt", "completion"} & set(names):
            is_messages |= _holds_lists(batch.column(column))
        codes |= is_messages.astype(np.int64) << len(names)
        values, firsts, counts = np.unique(codes, return_index=True, return_counts=True)
        for row, code, count in sorted(zip(firsts.tolist(), values.tolist(), counts.tolist(), strict=True)):
            filled = [column for bit, column in enumerate(names) if code >> bit & 1]
            kind = kind_of(filled, bool(code >> len(names) & 1), text_column)
            own = {WHERE_COLUMN: batch.column(WHERE_COLUMN)[row].as_py()} if where_column else {}
            _count(found, kind, count, place_of(own, first + row, name))
        first += batch.num_rows
    return _sorted(found)


def kinds_of_rows(rows: Sequence[Mapping[str, Any]], text_column: str, name: str) -> list[Found]:
    """The same for some rows of a stream."""
    found: dict[Kind, Found] = {}
    for number, row in enumerate(rows):
        _count(found, kind_of_row(row, text_column), 1, place_of(row, number, name))
    return _sorted(found)


def _count(found: dict[Kind, Found], kind: Kind | None, num_rows: int, place: str) -> None:
    """Count rows of a kind, of which the first stands at this place."""
    if kind is not None:
        known = found.setdefault(kind, Found(kind, 0, place))
        found[kind] = replace(known, num_rows=known.num_rows + num_rows)


def _sorted(found: Mapping[Kind, Found]) -> list[Found]:
    order = list(Kind)
    return sorted(found.values(), key=lambda entry: (-entry.num_rows, order.index(entry.kind)))


def _holds_lists(column: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
    """For each value whether it is a list."""
    import pyarrow
    import pyarrow.compute

    kind = column.type
    if isinstance(kind, pyarrow.JsonType):
        texts = pyarrow.chunked_array([chunk.storage for chunk in column.chunks], pyarrow.string())
        starts = pyarrow.compute.starts_with(texts, "[")
        return np.asarray(pyarrow.compute.fill_null(starts, fill_value=False), dtype=bool)
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return np.asarray(column.is_valid(), dtype=bool) & is_list


def first_readable(dataset: Any) -> Mapping[str, Any] | None:
    """The first row that could be read; None where there is none."""
    return next((row for row in dataset if row.get(PROBLEM_COLUMN) is None), None)
