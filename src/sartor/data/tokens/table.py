"""Tokenized rows as flat arrays, and as the Arrow table that they end up in.

What comes in: token ids, which of them are trained, and perhaps what each weighs.  What goes out: a `datasets.Dataset`
with `input_ids`, `labels`, for packed blocks `seq_lengths`, and where tokens are weighted `weights`.  What it keeps
true: cutting, choosing and packing move ids, labels and weights together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.records import IGNORE_INDEX, Packing, target_flags

if TYPE_CHECKING:
    import datasets
    import pyarrow

Tokens = NDArray[np.int32]
Integers = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows laid end to end: row i is tokens `offsets[i]` to `offsets[i + 1]`."""

    input_ids: Tokens
    labels: Tokens
    """Unshifted; -100 where not trained."""
    offsets: Integers
    documents: Sequence[Sequence[int]] | None = None
    """Lengths of the documents in each row, where rows are packed blocks; None: each row is one document."""
    weights: Weights | None = None
    """What each token weighs in the loss; None: each weighs 1."""

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]] | None,
        documents: Sequence[Sequence[int]] | None = None,
        weights: Sequence[Sequence[float] | None] | None = None,
    ) -> TokenRows:
        """Rows from Python lists; each row's labels, and its weights where it has any, are as long as its ids.

        Without labels, all is trained.
        """
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        count = int(offsets[-1])
        flat_ids = np.fromiter(chain.from_iterable(ids), np.int32, count=count)
        flat_labels = flat_ids
        if labels is not None:
            flat_labels = np.fromiter(chain.from_iterable(labels), np.int32, count=count)
        flat_weights = None
        if weights is not None and any(row is not None for row in weights):
            each = ([1.0] * len(row) if given is None else given for row, given in zip(ids, weights, strict=True))
            flat_weights = np.fromiter(chain.from_iterable(each), np.float32, count=count)
        return cls(flat_ids, flat_labels, offsets, documents, flat_weights)

    @classmethod
    def from_targets(cls, ids: Sequence[Sequence[int]], is_target: Sequence[Sequence[int]] | None) -> TokenRows:
        """Rows whose labels are their ids where `is_target`; everywhere where that is None."""
        rows = cls.from_lists(ids, None)
        if is_target is None:
            return rows
        try:
            flags: NDArray[Any] = np.frombuffer(
                b"".join(map(bytes, is_target)), np.uint8
            )  # three times as fast as numbers
        except ValueError:  # a number over 255
            flags = cls.from_lists(ids, is_target).labels
        return cls(rows.input_ids, np.where(flags != 0, rows.input_ids, np.int32(IGNORE_INDEX)), rows.offsets)

    @classmethod
    def from_table(cls, table: pyarrow.Table) -> TokenRows:
        """Ids and labels of prepared rows as Arrow has them, and the documents of those that are packed blocks."""
        import pyarrow.compute as compute

        ids, labels = (np.asarray(compute.list_flatten(table.column(name))) for name in ("input_ids", "labels"))
        lengths = np.asarray(compute.list_value_length(table.column("input_ids"))).astype(np.int64)
        documents = None
        if "seq_lengths" in table.column_names:  # a row that is no packed block has none
            given = table.column("seq_lengths").to_pylist()
            documents = [row or [length] for row, length in zip(given, lengths.tolist(), strict=True)]
        return cls(ids, labels, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), documents)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """All rows of the parts, in order."""
        if not parts:
            return cls.from_lists([], [])
        lengths = np.concatenate([part.lengths for part in parts])
        documents = [documents for part in parts for documents in part.documents or ()]
        return cls(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            documents if any(part.documents is not None for part in parts) else None,
            _concatenated_weights(parts),
        )

    def weighted(self, weights: Weights) -> TokenRows:
        """The same rows with these weights, one for each token; a token that weighs 0 is not trained.

        Where all that is trained weighs 1, the rows stay without weights: they are trained as if none had been given.
        """
        labels = np.where(weights == 0, np.int32(IGNORE_INDEX), self.labels)
        is_plain = bool((weights[labels != IGNORE_INDEX] == 1).all())
        return replace(self, labels=labels, weights=None if is_plain else weights)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.input_ids)

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Which tokens are targets, in all rows."""
        lengths: Any = self.lengths
        if self.documents is not None:
            lengths = list(chain.from_iterable(self.documents))
        return target_flags(self.labels, lengths, self.weights)

    @property
    def num_targets(self) -> int:
        """Targets of all rows: what the losses of one epoch sum over."""
        return int(np.count_nonzero(self.is_target))

    def count(self, is_counted: NDArray[np.bool_]) -> Integers:
        """For each row, how many of its tokens are counted, given one flag for each token of all rows."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_counted, dtype=np.int64)])
        return running[self.offsets[1:]] - running[self.offsets[:-1]]

    @property
    def targets_per_row(self) -> Integers:
        """Targets of each row."""
        return self.count(self.is_target)

    @property
    def has_labels(self) -> NDArray[np.bool_]:
        """Which rows have a labelled token, be it their first: what trl keeps rows by."""
        return self.count(self.labels != IGNORE_INDEX) > 0

    def pieces(self, rows: Integers, starts: Integers, lengths: Integers) -> TokenRows:
        """New rows: piece i is `lengths[i]` tokens of row `rows[i]` from its token `starts[i]` on."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] + starts - offsets[:-1], lengths)
        documents = self.documents
        if documents is not None:
            places = zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True)
            documents = [_overlaps(documents[row], start, start + length) for row, start, length in places]
        weights = None if self.weights is None else self.weights[source]
        return TokenRows(self.input_ids[source], self.labels[source], offsets, documents, weights)

    def take(self, rows: Integers) -> TokenRows:
        """The rows of these numbers, in that order."""
        return self.pieces(rows, np.zeros(len(rows), np.int64), self.offsets[rows + 1] - self.offsets[rows])

    def truncate(self, max_length: int, mode: str) -> TokenRows:
        """Every row cut to `max_length` tokens: its first ones for `keep_start`, its last ones for `keep_end`."""
        lengths = np.minimum(self.lengths, max_length)
        starts = self.lengths - lengths if mode == "keep_end" else np.zeros(len(self), np.int64)
        return self.pieces(np.arange(len(self)), starts, lengths)

    def packed(self, packing: Packing) -> TokenRows:
        """Blocks as a packing lays them out."""
        pieces = self.pieces(packing.rows, packing.starts, packing.lengths)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(packing.pieces_per_block)])
        documents = None
        if packing.keeps_documents:
            lengths = packing.lengths.tolist()
            documents = [lengths[start:end] for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
        return TokenRows(pieces.input_ids, pieces.labels, pieces.offsets[ends], documents, pieces.weights)

    def slice(self, first: int, end: int) -> TokenRows:
        """Rows `first` to `end`, without a copy of their tokens."""
        start, stop = int(self.offsets[first]), int(self.offsets[end])
        return TokenRows(
            self.input_ids[start:stop],
            self.labels[start:stop],
            self.offsets[first : end + 1] - start,
            None if self.documents is None else self.documents[first:end],
            None if self.weights is None else self.weights[start:stop],
        )

    def record_batch(self) -> pyarrow.RecordBatch:
        """The rows as Arrow has them: 32-bit ids, labels and weights; for fewer than 2^31 tokens."""
        import pyarrow

        offsets = pyarrow.array(self.offsets.astype(np.int32))
        columns = [
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(np.ascontiguousarray(tokens)))
            for tokens in (self.input_ids, self.labels)
        ]
        if self.documents is not None:
            columns.append(pyarrow.array(list(self.documents), pyarrow.list_(pyarrow.int32())))
        if self.weights is not None:
            columns.append(pyarrow.ListArray.from_arrays(offsets, pyarrow.array(np.ascontiguousarray(self.weights))))
        names = column_names(with_documents=self.documents is not None, with_weights=self.weights is not None)
        return pyarrow.RecordBatch.from_arrays(columns, names=names)

    def to_lists(self, *, with_weights: bool = False) -> dict[str, list[Any]]:
        """The rows as columns of Python lists, as a batched `map` returns them.

        Args:
            with_weights: whether there is a column of weights also where none are: with None for each row.
        """
        bounds = list(zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True))
        columns: dict[str, list[Any]] = {
            "input_ids": [self.input_ids[start:end].tolist() for start, end in bounds],
            "labels": [self.labels[start:end].tolist() for start, end in bounds],
        }
        if self.documents is not None:
            columns["seq_lengths"] = [list(lengths) for lengths in self.documents]
        if self.weights is not None:
            columns["weights"] = [self.weights[start:end].tolist() for start, end in bounds]
        elif with_weights:
            columns["weights"] = [None] * len(self)
        return columns


def _concatenated_weights(parts: Sequence[TokenRows]) -> Weights | None:
    """Weights of all parts; 1 in those that have none, and None where none has any."""
    if all(part.weights is None for part in parts):
        return None
    return np.concatenate(
        [np.ones(part.num_tokens, np.float32) if part.weights is None else part.weights for part in parts]
    )


def _overlaps(documents: Sequence[int], start: int, end: int) -> list[int]:
    """Lengths of the parts of documents, laid end to end, that lie between two tokens: [3, 4] from 2 to 5 is [1, 2]."""
    parts, first = [], 0
    for length in documents:
        part = min(end, first + length) - max(start, first)
        if part > 0:
            parts.append(part)
        first += length
    return parts


def column_names(*, with_documents: bool, with_weights: bool) -> list[str]:
    """Columns of prepared data, in order."""
    return ["input_ids", "labels"] + ["seq_lengths"] * with_documents + ["weights"] * with_weights


def features(*, with_documents: bool, with_weights: bool = False) -> datasets.Features:
    """The columns of prepared data, and what is in them."""
    import datasets

    names = column_names(with_documents=with_documents, with_weights=with_weights)
    return datasets.Features(
        {name: datasets.List(datasets.Value("float32" if name == "weights" else "int32")) for name in names}
    )
