"""Batches of rows to batches of tokens: in this process or in several, always in the order of the rows.

What comes in: a data set and an encoder.  What goes out: `Part`s, one for each batch of rows.  What it keeps true: the
same parts in the same order, whatever the number of processes; a row that is left out is noted in full and counted, and
counts of what was done hold for the others only.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.encoder import Encoder
from sartor.data.reading.places import Places
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import PROBLEM_COLUMN, batches_of, is_readable
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import Tokenization, run_ahead

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]

ROWS_PER_BATCH = 250
"""Rows that are in memory as Python objects at a time, and that the tokenizer gets in one call: enough to keep its
threads busy, few enough that it begins soon."""


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one batch of rows."""

    rows: TokenRows
    places: Places
    """Of each of the rows: fewer than were read where some are left out, more where conversations are unrolled."""
    problems: ProblemLog
    """What is wrong with the rows that are left out."""
    tally: Counter[str]
    """What is counted of the others (see `Encoder`)."""


def encode_here(dataset: datasets.Dataset, encoder: Encoder, *, name: str) -> Generator[Part]:
    """The parts of a data set, encoded in this process: texts are tokenized on threads, ahead of their turn.

    Args:
        dataset: rows with the columns that are used.
        name: what the rows are for; messages use it.
    """
    works = (encoding_part(encoder, rows, places) for rows, places in batches_of(dataset, ROWS_PER_BATCH, name))
    with few_collections(), closing(run_ahead(works, encoder.tokenize)) as results:
        yield from results


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
    encoder: Encoder, rows: Sequence[Row], places: Sequence[str], problems: ProblemLog | None = None
) -> Tokenization[Part]:
    """Tokens of the rows of a batch that can be used, step by step.

    Rows that cannot are left out, and the others are encoded all the same: what a template refuses is only found there,
    and every kind of bad row is to be told at once.

    Args:
        problems: the log of this batch; None: a new one.
    """
    problems = ProblemLog() if problems is None else problems
    rows, places = readable(rows, places, problems)
    while rows:
        found, tally = type(problems)(), Counter[str]()
        encoded, kept = yield from encoder.encoding(rows, places, found, tally)
        problems.update(found)
        if not found:
            return Part(encoded, Places.of_texts(kept), problems, tally)
        good = [number for number, place in enumerate(places) if place not in found.bad_places]
        rows, places = [rows[number] for number in good], [places[number] for number in good]
    return Part(TokenRows.from_lists([], []), Places.of_texts([]), problems, Counter())


def readable(rows: Sequence[Row], places: Sequence[str], problems: ProblemLog) -> tuple[Sequence[Row], list[str]]:
    """The rows that could be read; the others are noted as the reader has found them."""
    if not rows or PROBLEM_COLUMN not in rows[0]:
        return rows, list(places)
    kept: list[Row] = []
    kept_places: list[str] = []
    for row, place in zip(rows, places, strict=True):
        if is_readable(row, place, problems):
            kept.append({name: value for name, value in row.items() if name != PROBLEM_COLUMN})
            kept_places.append(place)
    return kept, kept_places
