"""Encodes the rows of a batch that can be used, and notes the others: the policy `bad_rows`.

What comes in: rows with their places.  What goes out: tokens and the places of those rows that were encoded.  What it
keeps true: a row that is left out is noted in full and counted, and counts of what was done hold for the others only.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sartor.data.encoding.encoder import Encoder
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import PROBLEM_COLUMN, problem_of
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import Tokenization
from sartor.errors import SartorWarning

T = TypeVar("T")
Row = Mapping[str, Any]


def encoding_usable(
    encoder: Encoder, rows: Sequence[Row], places: Sequence[str], problems: ProblemLog, *, skip: bool
) -> Tokenization[tuple[TokenRows, list[str]]]:
    """Tokens of the rows that can be used, with the place of each; what is wrong with the others goes to `problems`.

    Step by step, as `Encoder.encoding`.

    Args:
        skip: whether rows are left out where others cannot be used.  If not, nothing is encoded once there is a
            problem: the rows are only checked.
    """
    rows, places = readable(rows, places, problems)
    if not skip:
        return (yield from encoder.encoding(rows, places, problems))
    while rows:
        found = ProblemLog()
        (encoded, kept_places), counts = yield from _counted_apart(encoder.encoding(rows, places, found), encoder.tally)
        problems.update(found)
        if not found:
            encoder.tally.update(counts)
            return encoded, kept_places
        bad = found.bad_places
        kept = [number for number, place in enumerate(places) if place not in bad]
        rows, places = [rows[number] for number in kept], [places[number] for number in kept]
    return TokenRows.from_lists([], []), []


class Skipped:
    """Rows of a stream that are left out as they come: the first of each kind is said at once, all are counted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.problems = ProblemLog()

    def update(self, found: ProblemLog) -> None:
        """Count what was left out of some more rows.  The same rows, read again in a later epoch, count once."""
        known = self.problems.counts
        self.problems.update(found)
        for kind, told in zip(found.counts, found.told(), strict=True):
            if kind not in known:
                warnings.warn(
                    f"{self._name} data: skipped: {told} Others of this kind are left out too.",
                    SartorWarning,
                    stacklevel=2,
                )


def readable(rows: Sequence[Row], places: Sequence[str], problems: ProblemLog) -> tuple[Sequence[Row], list[str]]:
    """The rows that could be read; the others are noted as the reader has found them."""
    if not rows or PROBLEM_COLUMN not in rows[0]:
        return rows, list(places)
    kept: list[Row] = []
    kept_places: list[str] = []
    for row, place in zip(rows, places, strict=True):
        problem = problem_of(row)
        if problem is None:
            kept.append({name: value for name, value in row.items() if name != PROBLEM_COLUMN})
            kept_places.append(place)
        else:
            kind, message, excerpt = problem
            problems.add(kind, place, message, excerpt)
    return kept, kept_places


def _counted_apart(work: Tokenization[T], tally: Counter[str]) -> Tokenization[tuple[T, Counter[str]]]:
    """The work's result and what it counted, which is taken out of the tally again, whatever else runs in between."""
    own: Counter[str] = Counter()
    answer: Any = None
    while True:
        before = Counter(tally)
        try:
            texts = work.send(answer)
        except StopIteration as end:
            own.update(tally - before)
            _set(tally, before)
            return end.value, own
        own.update(tally - before)
        _set(tally, before)
        answer = yield texts


def _set(tally: Counter[str], counts: Counter[str]) -> None:
    tally.clear()
    tally.update(counts)
