"""Finds rows that are the same, or nearly so, in bounded memory.

Near: the sets of all runs of 8 characters (case and spacing aside) have a Jaccard similarity of `THRESHOLD` or more.
Candidates come from MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3); each candidate is then compared by bottom-k sketches, whose estimate is exact for texts of up to
`SKETCH` runs, so that what is called near is near.  Characters, not words: it must work for Chinese and for code too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]

THRESHOLD = 0.8
RUN = 8
"""Characters of a run."""
SKETCH = 768
"""Least hashes that are kept of a text: 3 KB."""
BANDS, PER_BAND = 16, 5
"""At a similarity of 0.8 a pair is missed once in 500, at 0.9 never."""
MIN_RUNS = 24
"""Shorter texts are only searched for exact duplicates: two short answers are alike by chance."""
MAX_ROWS = 100_000
"""Rows that are searched for near duplicates: about 350 MB.  Exact duplicates are searched for in all."""

_RANDOM = np.random.default_rng(20_250)
_FACTORS = _RANDOM.integers(0, 2**31, (BANDS * PER_BAND, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_OFFSETS = _RANDOM.integers(0, 2**32, (BANDS * PER_BAND, 1), dtype=np.uint32)
_BASE = np.uint64(0x9E3779B97F4A7C15)


def exact_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def sketch(text: str) -> Hashes:
    """The least `SKETCH` hashes of the text's runs, sorted; fewer where it is short."""
    codes = np.frombuffer(" ".join(text.casefold().split()).encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(codes) < RUN:
        return np.zeros(0, np.uint32)
    # A polynomial of the run's characters, and then its high bits: overflow is meant.
    number = len(codes) - RUN + 1
    value = np.zeros(number, np.uint64)
    for place in range(RUN):
        value = value * _BASE + codes[place : place + number]
    value ^= value >> np.uint64(29)
    hashes = np.unique((value * _BASE >> np.uint64(32)).astype(np.uint32))
    return hashes[:SKETCH]


def signature(hashes: Hashes) -> NDArray[np.uint64]:
    """One number per band; texts that share one are candidates."""
    least = (hashes * _FACTORS + _OFFSETS).min(axis=1).astype(np.uint64).reshape(BANDS, PER_BAND)
    bands = np.zeros(BANDS, np.uint64)
    for place in range(PER_BAND):
        bands = bands * _BASE + least[:, place]
    return bands


def similarity(first: Hashes, second: Hashes) -> float:
    """The Jaccard similarity of two texts, estimated from their sketches; exact where both are whole."""
    if max(len(first), len(second)) < SKETCH:
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / max(1, len(first) + len(second) - shared)
    union = np.union1d(first, second)[:SKETCH]
    both = np.intersect1d(first, second, assume_unique=True)
    return np.count_nonzero(np.isin(union, both, assume_unique=True)) / len(union)


def are_near(first: Hashes, second: Hashes) -> bool:
    """Whether two texts are similar enough to be called near duplicates."""
    shorter, longer = sorted((len(first), len(second)))
    if shorter < THRESHOLD * longer and longer < SKETCH:
        return False  # whatever they share
    return similarity(first, second) >= THRESHOLD


@dataclass(slots=True)
class Group:
    """Rows that are the same or nearly so: their numbers, in order."""

    rows: list[int]


@dataclass(slots=True)
class DuplicateSearch:
    """Takes rows in order, and then finds the groups.  Numbers are those in which rows were added, from 0."""

    max_rows: int = MAX_ROWS
    num_rows: int = 0
    num_searched: int = 0
    """Rows that were searched for near duplicates, among them those that are too short for it."""
    _exact: list[int] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _sketches: list[Hashes] = field(default_factory=list)
    _bands: list[NDArray[np.uint64]] = field(default_factory=list)
    _numbers: list[int] = field(default_factory=list)

    def add(self, exact: str, near: str) -> None:
        """One row: what must be equal in exact duplicates, and what is compared for near ones."""
        value = exact_hash(exact)
        number = self.num_rows
        self.num_rows += 1
        self._exact.append(value)
        if number >= self.max_rows:
            return
        self.num_searched += 1
        if value in self._seen:
            return
        self._seen.add(value)
        hashes = sketch(near)
        if len(hashes) >= MIN_RUNS:
            self._numbers.append(number)
            self._sketches.append(hashes)
            self._bands.append(signature(hashes))

    def exact(self) -> list[Group]:
        """Groups of two and more equal rows, by their first row."""
        return _equal(np.array(self._exact, np.uint64))

    def near(self) -> list[Group]:
        """Groups of two and more rows that are near one another, by their first row.

        Of equal rows the first stands for all.  In a bucket of many candidates each row is compared with the one before
        it and with the first, so that the work stays linear.
        """
        parents = list(range(len(self._numbers)))

        def root(row: int) -> int:
            while parents[row] != row:
                parents[row] = parents[parents[row]]
                row = parents[row]
            return row

        bands = np.array(self._bands, np.uint64).reshape(len(self._numbers), BANDS)
        for band in range(BANDS):
            for bucket in _equal(bands[:, band]):
                first = bucket.rows[0]
                for before, row in zip(bucket.rows, bucket.rows[1:], strict=False):
                    for other in {before, first}:
                        one, two = root(other), root(row)
                        if one != two and are_near(self._sketches[other], self._sketches[row]):
                            parents[max(one, two)] = min(one, two)
        groups: dict[int, list[int]] = {}
        for row, number in enumerate(self._numbers):
            groups.setdefault(root(row), []).append(number)
        return [Group(members) for members in groups.values() if len(members) > 1]

    def overlap(self, other: DuplicateSearch) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(rows of `other` that are equal to a row here, those that are near one), each as (number here, there)."""
        place = {value: number for number, value in reversed(list(enumerate(self._exact)))}
        equal = [(place[value], number) for number, value in enumerate(other._exact) if value in place]
        equal_numbers = {number for _, number in equal}
        buckets: dict[tuple[int, int], list[int]] = {}
        for row, bands in enumerate(self._bands):
            for band, value in enumerate(bands.tolist()):
                buckets.setdefault((band, value), []).append(row)
        near = []
        for row, number in enumerate(other._numbers):
            if number in equal_numbers:
                continue
            match = self._match(other, row, buckets)
            if match is not None:
                near.append((self._numbers[match], number))
        return equal, near

    def _match(
        self, other: DuplicateSearch, row: int, buckets: dict[tuple[int, int], list[int]], at_most: int = 16
    ) -> int | None:
        """The first row here that is near `row` of `other`, of up to `at_most` candidates per band."""
        candidates = sorted(
            {
                candidate
                for band, value in enumerate(other._bands[row].tolist())
                for candidate in buckets.get((band, value), ())[:at_most]
            }
        )
        sketches = self._sketches
        return next((one for one in candidates if are_near(sketches[one], other._sketches[row])), None)


def _equal(values: NDArray[np.uint64]) -> list[Group]:
    """Groups of two and more positions with the same value, by their first position."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    borders = np.flatnonzero(np.diff(values[order])) + 1
    groups = [Group(part.tolist()) for part in np.split(order, borders) if len(part) > 1]
    return sorted(groups, key=lambda group: group.rows[0])


def extra_rows(groups: Sequence[Group]) -> int:
    """How many rows could go so that one of each group stays."""
    return sum(len(group.rows) - 1 for group in groups)
