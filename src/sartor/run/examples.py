"""Prepared data sets as examples: the only place that reads rows of `datasets` while training and evaluating."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_utils import has_length

from sartor.batching import order
from sartor.data.encoding.ahead import ahead
from sartor.data.tokens.table import TokenRows
from sartor.records import Example
from sartor.run.loop import OptimizerBatch
from sartor.run.settings import RunSettings

ROWS_AHEAD = 256
"""Rows of a stream that wait, encoded, for the model: a few optimizer batches."""


def example_of(row: Mapping[str, Any]) -> Example:
    """One prepared row; without `labels`, every token is trained, as trl's collator does.

    A row without `input_ids` (a data set that a user's own collator tokenizes) is an example without tokens.
    """
    input_ids = row.get("input_ids", ())
    labels = row.get("labels")
    weights = row.get("weights")
    return Example(
        input_ids,
        input_ids if labels is None else labels,
        tuple(row.get("seq_lengths") or ()),
        () if weights is None else weights,
    )


class Examples:
    """A prepared data set of known length."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._columns = frozenset(dataset.column_names or ())
        # Arrow's buffers are read without a Python object per token; a transform of the user's makes rows its own way.
        is_plain = "input_ids" in self._columns and dataset.format["type"] != "custom"
        self._arrow = dataset.with_format("arrow") if is_plain else None
        self._lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example; read once."""
        if self._lengths is None:
            if self._arrow is not None:
                self._lengths = _list_lengths(self._whole("input_ids"))
            else:
                self._lengths = np.array([len(example.input_ids) for example in self.all()], np.int64)
        return self._lengths

    def longest_document(self) -> int:
        """Tokens of the longest document, which in a packed block is one of several; 0 where there is none."""
        if self._arrow is None or "seq_lengths" not in self._columns:
            return int(self.lengths.max(initial=0))
        alone = self.lengths[_list_lengths(self._whole("seq_lengths")) == 0]
        packed = np.concatenate([np.zeros(1, np.int64), *_lists(self._whole("seq_lengths"))])
        return int(max(alone.max(initial=0), packed.max()))

    def take(self, indices: Sequence[int]) -> list[Example]:
        """The examples at these indices, in this order."""
        if self._arrow is None or not indices:
            return [example_of(row) for row in self.rows(indices)]
        table = self._arrow[list(indices)]
        ids = _lists(table.column("input_ids"))
        labels = _lists(table.column("labels")) if "labels" in self._columns else ids
        documents: list[Any] = [()] * len(ids)
        if "seq_lengths" in self._columns:
            documents = [tuple(lengths.tolist()) for lengths in _lists(table.column("seq_lengths"))]
        weights: list[Any] = [()] * len(ids)
        if "weights" in self._columns:
            weights = _lists(table.column("weights"), np.float32)
        return [Example(*parts) for parts in zip(ids, labels, documents, weights, strict=True)]  # type: ignore[arg-type]

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The same as the data set itself gives them, with all their columns."""
        return [self._dataset[int(index)] for index in indices]

    def _whole(self, column: str) -> Any:
        """One column of the whole data set, as Arrow has it."""
        assert self._arrow is not None
        return self._arrow.select_columns([column])[:].column(column)

    def all(self, at_a_time: int = 256) -> Iterator[Example]:
        """Every example in the data set's own order."""
        for start in range(0, len(self), at_a_time):
            yield from self.take(range(start, min(start + at_a_time, len(self))))

    def batches(
        self, epoch: int, settings: RunSettings, *, keep_rows: bool = False, skip: int = 0
    ) -> Iterator[OptimizerBatch]:
        """The optimizer batches of an epoch.

        Args:
            epoch: counted from 0.
            settings: sizes of batches, order, and whether a last device batch that is not full is left out.
            keep_rows: whether the rows themselves are wanted too.
            skip: optimizer batches that are left out at the beginning; their rows are not read.
        """
        for group in islice(self.groups(epoch, settings), skip, None):
            keys = tuple(index for batch in group for index in batch)
            rows = tuple(self.rows(keys)) if keep_rows else ()
            examples = tuple(map(example_of, rows)) if keep_rows else tuple(self.take(keys))
            yield OptimizerBatch(examples, keys, tuple(len(batch) for batch in group), rows=rows)

    def groups(self, epoch: int, settings: RunSettings) -> Iterator[list[list[int]]]:
        """Indices of the device batches of each optimizer batch of an epoch; see `batches`.  No row is read."""
        indices = order.epoch_order(
            len(self),
            seed=settings.data_seed,
            epoch=epoch,
            strategy=settings.sampling,
            lengths=self.lengths.tolist() if settings.sampling == "group_by_length" else (),
            batch_size=settings.examples_per_step,
        )
        device_batches = order.device_batches(indices, settings.batch_size, drop_last=settings.drop_last)
        return order.optimizer_batches(device_batches, settings.accumulation)

    def num_targets(self, at_a_time: int = 65_536) -> NDArray[np.int64]:
        """Targets of each example, by labels alone: prepared data has none where a token weighs 0.

        Lengths where there are no labels, or a transform makes them.
        """
        if self._arrow is None or "labels" not in self._columns:
            return self.lengths
        names = [name for name in ("labels", "seq_lengths") if name in self._columns]
        found = [np.zeros(0, np.int64)]
        for start in range(0, len(self), at_a_time):
            part = self._arrow.select_columns(names)[start : start + at_a_time]
            labels = _lists(part.column("labels"), np.int32)
            documents: Any = None
            if "seq_lengths" in names:  # an example that is no packed block has none
                given = _lists(part.column("seq_lengths"))
                documents = [one if len(one) else [len(row)] for one, row in zip(given, labels, strict=True)]
            offsets = np.cumsum([0, *map(len, labels)])
            flat = np.concatenate(labels)
            found.append(TokenRows(flat, flat, offsets, documents).targets_per_row)
        return np.concatenate(found)


def _list_lengths(column: Any) -> NDArray[np.int64]:
    """Length of each of Arrow's lists; a missing one has none."""
    import pyarrow.compute

    return np.asarray(pyarrow.compute.fill_null(pyarrow.compute.list_value_length(column), 0), dtype=np.int64)


def _lists(column: Any, dtype: type[np.generic] = np.int64) -> list[NDArray[Any]]:
    """Arrow's column of lists as one array per row; a missing one is empty."""
    import pyarrow.compute

    flat = np.asarray(pyarrow.compute.list_flatten(column), dtype=dtype)
    if not flat.flags.writeable:  # Arrow's own memory, of which torch wants a copy
        flat = flat.copy()
    return np.split(flat, np.cumsum(_list_lengths(column)))[:-1]


def stream_batches(
    dataset: Any, epoch: int, settings: RunSettings, *, keep_rows: bool = False
) -> Iterator[OptimizerBatch]:
    """The optimizer batches of one pass over a stream, in its own order; see `Examples.batches` for the arguments.

    Its rows are read, and so encoded, ahead of training, on a thread.
    What is left when the stream ends inside an accumulation comes as a batch that is not complete.
    """
    dataset.set_epoch(epoch)
    size, wanted = settings.batch_size, settings.examples_per_step
    waiting: list[Mapping[str, Any]] = []
    start = 0
    with closing(ahead(dataset, ROWS_AHEAD)) as rows:
        for row in rows:
            waiting.append(row)
            if len(waiting) == wanted:
                yield _stream_batch(waiting, start, size, keep_rows=keep_rows, is_complete=True)
                start += len(waiting)
                waiting = []
    if settings.drop_last:
        waiting = waiting[: len(waiting) // size * size]
    if waiting:
        yield _stream_batch(waiting, start, size, keep_rows=keep_rows, is_complete=len(waiting) > wanted - size)


def _stream_batch(
    rows: Sequence[Mapping[str, Any]], start: int, batch_size: int, *, keep_rows: bool, is_complete: bool
) -> OptimizerBatch:
    sizes = [batch_size] * (len(rows) // batch_size)
    if len(rows) % batch_size:
        sizes.append(len(rows) % batch_size)
    keys = tuple(range(start, start + len(rows)))
    examples = tuple(map(example_of, rows))
    return OptimizerBatch(examples, keys, tuple(sizes), is_complete, tuple(rows) if keep_rows else ())


def device_batches(examples: Iterable[Example], batch_size: int) -> Iterator[tuple[Example, ...]]:
    """Consecutive examples in groups; the last may be smaller."""
    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == batch_size:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)


def all_examples(dataset: Any) -> Iterable[Example]:
    """The examples of a prepared data set, or of a stream, in its own order."""
    return Examples(dataset).all() if has_length(dataset) else map(example_of, dataset)


def longest_document(dataset: Any) -> int:
    """Tokens of the longest document; 0 for a stream, of which nothing is known."""
    return Examples(dataset).longest_document() if has_length(dataset) else 0
