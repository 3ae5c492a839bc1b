"""Where each prepared example comes from: file and line of its rows, small enough to keep for millions of them.

What comes in: the places of rows as text ("train.jsonl, line 12"), a batch at a time.  What goes out: `Places`, two
numbers per row, from which the text of any example is made again.  What it keeps true: dropping, shuffling, mixing and
packing move places as they move the examples.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.records import Packing

Integers = NDArray[np.int64]

_PLACE = re.compile(r"(?s)(.*), (line|row) (\d+)")
EXAMPLES_KEPT = 65_536
"""Examples of a stream whose places are known: more than are read ahead, packed together and in one optimizer batch."""
ROWS_SHOWN = 4
"""Rows that are named of a packed block; of more the number is said."""


@dataclass(frozen=True, slots=True)
class Places:
    """Places of examples, in their order: 8 bytes a row."""

    sources: tuple[tuple[str, str], ...]
    """(file or name of the data set, "line" or "row") of those that occur."""
    source_numbers: NDArray[np.int32]
    """For each row, which of `sources`."""
    row_numbers: NDArray[np.int32]
    """For each row, its line from 1 or its row from 0, as `Row.number`."""
    offsets: Integers | None = None
    """Rows of example i are `offsets[i]` to `offsets[i + 1]`, where examples are packed blocks; None: one row each."""

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Places:
        """Places from their texts: `Row.where` of each row, in order.

        Worked example: "a.jsonl, line 3" and "train data, row 0" have the sources ("a.jsonl", "line") and ("train
        data", "row"), and the numbers 3 and 0.
        """
        known: dict[tuple[str, str], int] = {}
        numbers: list[tuple[int, int]] = []
        for text in texts:
            match = _PLACE.fullmatch(text)
            assert match is not None
            numbers.append((known.setdefault((match[1], match[2]), len(known)), int(match[3])))
        table = np.array(numbers, np.int32).reshape(len(numbers), 2)
        return cls(tuple(known), table[:, 0].copy(), table[:, 1].copy())

    @classmethod
    def concatenate(cls, parts: Sequence[Places]) -> Places:
        """All examples of the parts, in order."""
        known: dict[tuple[str, str], int] = {}
        source_numbers = [np.zeros(0, np.int32)]
        for part in parts:
            numbers = [known.setdefault(source, len(known)) for source in part.sources]
            source_numbers.append(np.array(numbers, np.int32)[part.source_numbers])
        offsets = None
        if any(part.offsets is not None for part in parts):
            rows_per_example = np.concatenate([part.rows_per_example for part in parts])
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows_per_example)])
        row_numbers = np.concatenate([np.zeros(0, np.int32), *(part.row_numbers for part in parts)])
        return cls(tuple(known), np.concatenate(source_numbers), row_numbers, offsets)

    def __len__(self) -> int:
        return len(self.row_numbers) if self.offsets is None else len(self.offsets) - 1

    @property
    def rows_per_example(self) -> Integers:
        """How many rows each example is made of."""
        return np.ones(len(self), np.int64) if self.offsets is None else np.diff(self.offsets)

    def take(self, examples: Integers) -> Places:
        """Places of the examples of these numbers, in that order."""
        return self._merged(np.asarray(examples, np.int64), None)

    def packed(self, packing: Packing) -> Places:
        """Places of blocks, each of the rows of all its pieces; a row cut into several blocks is in each of them."""
        return self._merged(packing.rows, packing.pieces_per_block)

    def _merged(self, examples: Integers, per_block: Integers | None) -> Places:
        """Places of examples in a new order, and, where `per_block` is given, so many of them joined to one."""
        if self.offsets is None and per_block is None:
            return Places(self.sources, self.source_numbers[examples], self.row_numbers[examples])
        counts = self.rows_per_example[examples]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        firsts = examples if self.offsets is None else self.offsets[examples]
        rows = np.arange(ends[-1]) + np.repeat(firsts - ends[:-1], counts)
        if per_block is not None:
            ends = ends[np.concatenate([np.zeros(1, np.int64), np.cumsum(per_block)])]
        return Places(self.sources, self.source_numbers[rows], self.row_numbers[rows], ends)

    def rows_of(self, example: int) -> list[tuple[str, str, int]]:
        """(source, "line" or "row", number) of each row of an example, in order and each once."""
        first, end = (example, example + 1) if self.offsets is None else self.offsets[example : example + 2].tolist()
        pairs = zip(self.source_numbers[first:end].tolist(), self.row_numbers[first:end].tolist(), strict=True)
        return list(dict.fromkeys((*self.sources[source], number) for source, number in pairs))

    def where(self, example: int) -> str:
        """For messages: `train.jsonl, line 12`; of a packed block its first rows: `train.jsonl, lines 12, 4 and 2
        more`.

        Raises:
            IndexError: there is no such example.
        """
        if not 0 <= example < len(self):
            raise IndexError(f"example {example} of {len(self)}")
        rows = self.rows_of(example)
        shown: dict[tuple[str, str], list[int]] = {}
        for source, kind, number in rows[:ROWS_SHOWN]:
            shown.setdefault((source, kind), []).append(number)
        parts = [
            f"{source}, {kind}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
            for (source, kind), numbers in shown.items()
        ]
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return "; ".join(parts) + more

    def first_rows(self) -> list[str]:
        """The place of each example's first row, as text that `of_texts` reads."""
        firsts = np.arange(len(self)) if self.offsets is None else self.offsets[:-1]
        pairs = zip(self.source_numbers[firsts].tolist(), self.row_numbers[firsts].tolist(), strict=True)
        heads = [f"{source}, {kind} " for source, kind in self.sources]
        return [f"{heads[source]}{number}" for source, number in pairs]

    def once_each(self) -> Places:
        """The first of neighbouring examples of the same row, as unrolled conversations give them; not of blocks."""
        assert self.offsets is None
        numbers = np.stack([self.source_numbers, self.row_numbers])
        is_first = np.concatenate(
            [np.ones(min(1, len(self)), np.bool_), (numbers[:, 1:] != numbers[:, :-1]).any(axis=0)]
        )
        return self.take(np.flatnonzero(is_first))

    def counts(self) -> dict[str, int]:
        """Rows of each source, in the order in which the sources first occur."""
        found = np.bincount(self.source_numbers, minlength=len(self.sources)).tolist()
        result: dict[str, int] = {}
        for (source, _), count in zip(self.sources, found, strict=True):
            if count:
                result[source] = result.get(source, 0) + count
        return result


class RecentPlaces:
    """Places of a stream's examples, by their number in the epoch; the oldest are forgotten, as a stream has no end."""

    def __init__(self, num_kept: int = EXAMPLES_KEPT) -> None:
        self._num_kept = num_kept
        self._parts: deque[tuple[int, Places]] = deque()
        self._end = 0

    def restart(self) -> None:
        """A new epoch begins: the next example is number 0."""
        self._parts.clear()
        self._end = 0

    def append(self, places: Places) -> None:
        """The next examples."""
        self._parts.append((self._end, places))
        self._end += len(places)
        while self._end - self._parts[0][0] - len(self._parts[0][1]) >= self._num_kept:
            self._parts.popleft()

    def __len__(self) -> int:
        """How many examples the epoch has had so far."""
        return self._end

    def between(self, first: int, end: int) -> Places:
        """Places of the examples from `first` to before `end`, which are not forgotten."""
        parts = [
            places.take(np.arange(max(first - start, 0), min(end - start, len(places))))
            for start, places in self._parts
            if start < end and first < start + len(places)
        ]
        return Places.concatenate(parts)

    def where(self, example: int) -> str:
        """For messages, as `Places.where`; the number alone where it is forgotten."""
        for start, places in self._parts:
            if start <= example < start + len(places):
                return places.where(example - start)
        return f"example {example} of the stream (from 0)"
