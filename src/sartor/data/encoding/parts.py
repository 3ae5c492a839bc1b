"""Batches of rows to batches of tokens: in this process or in several, always in the order of the rows.

What comes in: a data set and an encoder.  What goes out: `Part`s, one for each batch of rows.  What it keeps true: the
same parts in the same order, whatever the number of processes; what is wrong with rows is noted, and what is counted is
counted, in the order of the rows.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.usable import encoding_usable
from sartor.data.reading.places import Places
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import WHERE_COLUMN
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import Tokenization, run_ahead

if TYPE_CHECKING:
    import datasets

ROWS_PER_BATCH = 250
"""Rows that are in memory as Python objects at a time, and that the tokenizer gets in one call: enough to keep its
threads busy, few enough that it begins soon."""


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one batch of rows."""

    rows: TokenRows
    places: Places
    """Of each of the rows: fewer than were read where some are skipped, more where conversations are unrolled."""


def encode_here(dataset: datasets.Dataset, encoder: Encoder, problems: ProblemLog, *, name: str) -> Generator[Part]:
    """The parts of a data set, encoded in this process: texts are tokenized on threads, ahead of their turn.

    Args:
        dataset: rows with the columns that are used.
        problems: where what is wrong with rows is noted.  The others are encoded all the same: what a template refuses
            is only found there, and every kind of bad row is to be told at once.
        name: what the rows are for; messages use it.
    """

    def works() -> Iterator[Tokenization[tuple[Part, ProblemLog]]]:
        first = 0
        for batch in dataset.iter(ROWS_PER_BATCH):
            rows = rows_of(batch)
            yield encoding_part(encoder, rows, places_of(rows, first, name), ProblemLog())
            first += len(rows)

    with few_collections(), closing(run_ahead(works(), encoder.tokenize)) as results:
        for part, found in results:
            problems.update(found)
            yield part


@contextmanager
def few_collections() -> Iterator[None]:
    """While many objects are made and go again, Python's garbage collector leaves alone those that were there before.

    Else it walks through all that torch and others keep again and again, for a fifth of the time.  Nothing else
    changes: new garbage is collected, and old garbage afterwards.
    """
    if gc.get_freeze_count():
        yield  # somebody else has frozen what is there, and may want it to stay so
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def encoding_part(
    encoder: Encoder, rows: Sequence[Mapping[str, Any]], places: Sequence[str], problems: ProblemLog
) -> Tokenization[tuple[Part, ProblemLog]]:
    """One batch of rows, step by step, with the log that was given."""
    encoded, kept = yield from encoding_usable(encoder, rows, places, problems, skip=True)
    return Part(encoded, Places.of_texts(kept)), problems


def rows_of(batch: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The rows of a batch of columns."""
    names = list(batch)
    return [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def places_of(rows: Sequence[Mapping[str, Any]], first: int, name: str) -> list[str]:
    """Where rows stand, for messages: file and line where known, else the number in the data set, from 0."""
    return [row.get(WHERE_COLUMN) or f"{name} data, row {number}" for number, row in enumerate(rows, first)]
