"""What an inspection found: frozen records that terminal, page and JSON are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sartor.records import DataSummary

SCHEMA = 1
"""Version of the JSON form; raised when a key changes its meaning or goes."""


class Severity(StrEnum):
    """How bad a finding is: a training run would stop, would probably learn something wrong, or worth knowing.

    The worst comes first.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Sight:
    """One row that a finding names."""

    where: str
    """File and line, where known: `train.jsonl, line 12`."""
    excerpt: str
    """What to recognise it by, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing found in a data set, and what to do about it."""

    kind: str
    """Stable name, for scripts: `exact_duplicates`."""
    severity: Severity
    data: str
    """Name of the data set: `train` or `eval`."""
    count: int
    """Rows that have it; 0: it is about the data set as a whole."""
    message: str
    advice: str
    first: tuple[Sight, ...] = ()
    """The first rows of it, in order."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one `max_length` would cut."""

    max_length: int
    num_rows: int
    """Rows that are longer."""
    num_tokens: int
    """Tokens lost."""
    num_targets: int
    """Trained tokens lost."""
    num_emptied: int
    """Rows that would keep no trained token."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A `max_length`, and why."""

    max_length: int
    reason: str


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a sample."""

    id: int
    text: str
    """As it reads in its place; empty where it is the beginning of a character that a later token ends."""
    is_target: bool
    is_special: bool
    is_cut: bool
    """Whether `max_length` cuts it off."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row, token by token."""

    where: str
    tokens: tuple[Token, ...]
    num_tokens: int
    """Of the whole row; `tokens` may hold its beginning only."""
    num_targets: int
    findings: tuple[str, ...] = ()
    """Kinds of the findings that name this row."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens and trained tokens of each usable row, before anything is cut."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    cuts: tuple[Cut, ...] = ()
    suggestion: Suggestion | None = None
    max_length: int | None = None
    """The one that was asked for."""

    @classmethod
    def none(cls) -> Lengths:
        """Of no rows: a mixture's lengths are those of its sources."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def targets_lost(self, cut: Cut) -> str:
        """How many targets are cut off, and which share of all that is."""
        return f"{cut.num_targets:,} ({share(cut.num_targets, int(self.targets.sum()))})" if cut.num_targets else "0"

    def quantiles(self, values: NDArray[np.int64]) -> Mapping[str, int]:
        """Least, median, 90 %, 99 % and greatest; each is a length that occurs."""
        if not len(values):
            return {}
        shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: int(np.quantile(values, share, method="higher")) for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything about one data set."""

    name: str
    source: str
    """What was given: a path or a Hub id."""
    model: str
    summary: DataSummary
    """As a training run with the same options would count it."""
    lengths: Lengths
    findings: tuple[Finding, ...] = ()
    """The worst first."""
    samples: tuple[Sample, ...] = ()
    searched: str = ""
    """What duplicates were looked for in."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The data options that were given."""

    @property
    def has_errors(self) -> bool:
        """Whether a training run would stop because of the data."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


def rows(count: int, singular: str = "row", plural: str = "rows") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {singular if count == 1 else plural}"


def share(part: int, whole: int) -> str:
    """`12.3 %`; what is there is never 0."""
    value = part / max(1, whole)
    return (
        "under\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
        if 0 < value < 0.001
        else f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    )
