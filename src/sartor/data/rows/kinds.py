"""What a row is, told by which of its columns are filled: counted over all rows, so that none is taken for another.

What comes in: a data set, or some rows of a stream.  What goes out: for each kind of row, how many there are and where
the first stands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.tables import OUR_COLUMNS, PROBLEM_COLUMN, WHERE_COLUMN

if TYPE_CHECKING:
    import datasets
    import pyarrow

ROWS_AT_ONCE = 50_000


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


def _columns(text_column: str) -> tuple[str, ...]:
    return (
        "input_ids",
        "prompt",
        "completion",
        "messages",
        "conversations",
        "instruction",
        "output",
        *([] if text_column in ("prompt", "completion", "messages", "instruction", "output") else [text_column]),
    )


def kinds_of_dataset(dataset: datasets.Dataset, text_column: str, name: str) -> list[Found]:
    """The kinds of all rows, the most frequent first; read off the table, without a Python object for each row."""
    names = [column for column in _columns(text_column) if column in dataset.column_names]
    if not names:
        return []
    shown = [column for column in OUR_COLUMNS if column in dataset.column_names]
    table = dataset.select_columns([*names, *shown]).with_format("arrow")
    tally = _Tally(names, text_column)
    first = 0
    for batch in table.iter(ROWS_AT_ONCE):
        codes = np.zeros(batch.num_rows, np.int64)
        for bit, column in enumerate(names):
            codes |= np.asarray(batch.column(column).is_valid()).astype(np.int64) << bit
        is_messages = np.zeros(batch.num_rows, bool)
        for column in {"prompt", "completion"} & set(names):
            is_messages |= _holds_lists(batch.column(column))
        codes |= is_messages.astype(np.int64) << len(names)
        where = batch.column(WHERE_COLUMN) if WHERE_COLUMN in shown else None
        place = _place_in(where, first, name)
        tally.add(codes, place)
        first += batch.num_rows
    return tally.found()


def kinds_of_rows(rows: Sequence[Mapping[str, Any]], text_column: str, name: str) -> list[Found]:
    """The same for some rows of a stream."""
    counts: dict[Kind, list[str]] = {}
    for number, row in enumerate(rows):
        kind = kind_of_row(row, text_column)
        if kind is not None:
            counts.setdefault(kind, []).append(row.get(WHERE_COLUMN) or f"{name} data, row {number}")
    return _sorted(Found(kind, len(places), places[0]) for kind, places in counts.items())


class _Tally:
    """Counts rows by which columns are filled: one bit for each, and one for messages in prompt or completion."""

    def __init__(self, names: Sequence[str], text_column: str) -> None:
        self._names = names
        self._text_column = text_column
        self._found: dict[Kind, Found] = {}

    def add(self, codes: NDArray[np.int64], place: Callable[[int], str]) -> None:
        values, firsts, counts = np.unique(codes, return_index=True, return_counts=True)
        for row, code, count in sorted(zip(firsts.tolist(), values.tolist(), counts.tolist(), strict=True)):
            filled = [name for bit, name in enumerate(self._names) if code >> bit & 1]
            kind = kind_of(filled, bool(code >> len(self._names) & 1), self._text_column)
            if kind is not None:
                known = self._found.get(kind)
                self._found[kind] = Found(
                    kind, count + (known.num_rows if known else 0), known.first if known else place(row)
                )

    def found(self) -> list[Found]:
        return _sorted(self._found.values())


def _sorted(found: Collection[Found] | Iterator[Found]) -> list[Found]:
    order = list(Kind)
    return sorted(found, key=lambda entry: (-entry.num_rows, order.index(entry.kind)))


def _place_in(where: Any, first: int, name: str) -> Callable[[int], str]:
    def place(row: int) -> str:
        return f"{name} data, row {first + row}" if where is None else str(where[row].as_py())

    return place


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
