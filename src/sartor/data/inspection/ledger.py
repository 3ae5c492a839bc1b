"""Collects findings row by row, in bounded memory: all are counted, the first few of each kind are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from sartor.data.inspection.record import Finding, Severity, Sight
from sartor.data.reading.problems import excerpt

KEPT = 5
"""Rows that a finding names."""
EXCERPT_CHARACTERS = 120


class Ledger:
    """Findings of one data set, as they come up."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._found: dict[tuple[str, str], Finding] = {}
        self.named: set[str] = set()
        """Places of all rows that a finding names."""

    def see(
        self,
        kind: str,
        severity: Severity,
        message: str,
        advice: str,
        *,
        where: str,
        shown: object,
        variant: str = "",
    ) -> None:
        """One row that has it.

        Args:
            kind: the finding's stable name.
            message: what it is, once for all its rows.
            shown: what the row's excerpt is made of.
            variant: sets apart findings of one kind, such as one per marker.
        """
        known = self._found.get((kind, variant)) or Finding(kind, severity, self._data, 0, message, advice)
        first = known.first
        if len(first) < KEPT:
            first = (*first, Sight(where, excerpt(shown, EXCERPT_CHARACTERS)))
            self.named.add(where)
        self._found[kind, variant] = replace(known, count=known.count + 1, first=first)

    def say(
        self,
        kind: str,
        severity: Severity,
        message: str,
        advice: str = "",
        *,
        count: int = 0,
        sights: Iterable[tuple[str, object]] = (),
    ) -> None:
        """One finding that is known as a whole: how many rows have it, and (place, what is shown) of the first."""
        first = (Sight(where, excerpt(content, EXCERPT_CHARACTERS)) for where, content in islice(sights, KEPT))
        self._found[kind, message] = Finding(kind, severity, self._data, count, message, advice, tuple(first))

    def findings(self) -> tuple[Finding, ...]:
        """All of them, the worst first, else in the order in which they came up."""
        order = list(Severity)
        return tuple(sorted(self._found.values(), key=lambda finding: order.index(finding.severity)))
