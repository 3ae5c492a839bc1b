"""Collects what is wrong with rows, so that one error tells it all: the first of each kind, and how many there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sartor.errors import DataError
from sartor.records import Problem

EXCERPT_CHARACTERS = 240
"""What is shown of a row: enough to recognise it, little enough to read ten of them."""


class BadRow(Exception):
    """A row that cannot be used: `kind`, the same for all rows with this problem, and what is wrong."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ProblemLog:
    """Problems found so far: the first of each kind in full, all of them counted."""

    def __init__(self) -> None:
        self._first: dict[str, Problem] = {}
        self._counts: dict[str, int] = {}
        self._bad_places: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._first)

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of problem was noted; a row may have several."""
        return dict(self._counts)

    @property
    def bad_places(self) -> frozenset[str]:
        """Where the rows stand that have a problem."""
        return frozenset(self._bad_places)

    def add(self, kind: str, where: str, message: str, row: object = None) -> None:
        """Note a problem; `kind` groups it with others of its sort, `row` is what its excerpt shows."""
        if kind not in self._first:
            self._first[kind] = Problem(kind, where, message, "" if row is None else excerpt(row))
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._bad_places.add(where)

    def update(self, other: ProblemLog) -> None:
        """Note all that another log has, behind what is here."""
        for kind, problem in other._first.items():
            self._first.setdefault(kind, problem)
            self._counts[kind] = self._counts.get(kind, 0) + other._counts[kind]
        self._bad_places |= other._bad_places

    def raise_if_any(self, source: str, num_rows: int) -> None:
        """Raise one error that tells everything noted; do nothing where nothing was.

        Raises:
            DataError: where there are problems.
        """
        if self._first:
            raise DataError(self.tell(source, num_rows))

    def tell(self, source: str, num_rows: int) -> str:
        """The message of that error."""
        lines = [f"{source}: {len(self._bad_places):,} of {num_rows:,} rows cannot be used."]
        for number, (kind, problem) in enumerate(self._first.items(), 1):
            lines.append(f"  {number}. {self._told(kind)}")
            if problem.excerpt:
                lines.append(f"       {problem.excerpt}")
        return "\n".join(lines)

    def told(self) -> tuple[str, ...]:
        """One sentence for each kind: how often it occurs, where first, and what is wrong."""
        return tuple(self._told(kind) for kind in self._first)

    def _told(self, kind: str) -> str:
        count, problem = self._counts[kind], self._first[kind]
        place = problem.where if count == 1 else f"{count:,} times, first in {problem.where}"
        return f"{kind} ({place}): {problem.message}"


def excerpt(row: object, characters: int = EXCERPT_CHARACTERS) -> str:
    """One line that shows a row or a raw line: long values lose their middle, so that every column is seen."""
    if isinstance(row, Mapping):
        room = max(24, characters // max(1, len(row)))
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {_cut(_as_json(value), room)}" for key, value in row.items()
        ]
        return _cut("{" + ", ".join(parts) + "}", 2 * characters)
    return _cut(row if isinstance(row, str) else _as_json(row), characters)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str, characters: int) -> str:
    """The text in one line, with what is too long left out of its middle."""
    line = text.replace("\r", "\\r").replace("\n", "\\n")
    if len(line) <= characters:
        return line
    head = (characters - 3) * 2 // 3
    return f"{line[:head]}...{line[len(line) - (characters - 3 - head) :]}"
