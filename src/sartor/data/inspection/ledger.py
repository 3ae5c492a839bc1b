"""Collects findings row by row, in bounded memory: all are counted, the first few of each kind are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from sartor.data.inspection.record import Finding, Severity, Sight
from sartor.data.reading.problems import excerpt

KEPT = 5
"""Rows that a finding names."""
EXCERPT_CHARACTERS = 120

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(slots=True)
class _Entry:
    severity: Severity
    message: str
    advice: str
    count: int = 0
    sights: list[Sight] = field(default_factory=list)


class Ledger:
    """Findings of one data set, as they come up."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._entries: dict[tuple[str, str], _Entry] = {}
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
        entry = self._entries.setdefault((kind, variant), _Entry(severity, message, advice))
        entry.count += 1
        if len(entry.sights) < KEPT:
            entry.sights.append(Sight(where, excerpt(shown, EXCERPT_CHARACTERS)))
            self.named.add(where)

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
        shown = [Sight(where, excerpt(content, EXCERPT_CHARACTERS)) for where, content in islice(sights, KEPT)]
        self._entries[kind, message] = _Entry(severity, message, advice, count, shown)

    def findings(self) -> tuple[Finding, ...]:
        """All of them, the worst first, else in the order in which they came up."""
        found = [
            Finding(kind, entry.severity, self._data, entry.count, entry.message, entry.advice, tuple(entry.sights))
            for (kind, _), entry in self._entries.items()
        ]
        return worst_first(found)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings by severity; within one, in their order."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))
