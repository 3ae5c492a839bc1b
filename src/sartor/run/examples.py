"""Prepared data sets as examples: the only place that reads rows of `datasets` while training and evaluating."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.batching import order
from sartor.data.encoding.ahead import ahead
from sartor.data.tokens.table import TokenRows
from sartor.records import IGNORE_INDEX, Example
from sartor.run.loop import OptimizerBatch

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
        self,
        epoch: int,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        strategy: str,
        drop_last: bool,
        keep_rows: bool = False,
        skip: int = 0,
    ) -> Iterator[OptimizerBatch]:
        """The optimizer batches of an epoch.

        Args:
            epoch: counted from 0.
            batch_size: examples of a device batch.
            accumulation: device batches of an optimizer batch.
            seed: of the order.
            strategy: "random", "sequential" or "group_by_length".
            drop_last: whether a last device batch that is not full is left out.
            keep_rows: whether the rows themselves are wanted too.
            skip: optimizer batches that are left out at the beginning; their rows are not read.
        """
        groups = self.groups(
            epoch,
            batch_size=batch_size,
            accumulation=accumulation,
            seed=seed,
            strategy=strategy,
            drop_last=drop_last,
        )
        for group in islice(groups, skip, None):
            keys = tuple(index for batch in group for index in batch)
            rows = tuple(self.rows(keys)) if keep_rows else ()
            examples = tuple(map(example_of, rows)) if keep_rows else tuple(self.take(keys))
            yield OptimizerBatch(examples, keys, tuple(len(batch) for batch in group), rows=rows)

    def groups(
        self, epoch: int, *, batch_size: int, accumulation: int, seed: int, strategy: str, drop_last: bool
    ) -> Iterator[list[list[int]]]:
        """Indices of the device batches of each optimizer batch of an epoch; see `batches`.  No row is read."""
        indices = order.epoch_order(
            len(self),
            seed=seed,
            epoch=epoch,
            strategy=strategy,
            lengths=self.lengths.tolist() if strategy == "group_by_length" else (),
            batch_size=batch_size * accumulation,
        )
        device_batches = order.device_batches(indices, batch_size, drop_last=drop_last)
        return order.optimizer_batches(device_batches, accumulation)

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
    dataset: Any, epoch: int, *, batch_size: int, accumulation: int, drop_last: bool, keep_rows: bool = False
) -> Iterator[OptimizerBatch]:
    """The optimizer batches of one pass over a stream, in its own order; see `Examples.batches` for the arguments.

    Its rows are read, and so encoded, ahead of training, on a thread.
    What is left when the stream ends inside an accumulation comes as a batch that is not complete.
    """
    dataset.set_epoch(epoch)
    waiting: list[Mapping[str, Any]] = []
    start = 0
    with closing(ahead(dataset, ROWS_AHEAD)) as rows:
        for row in rows:
            waiting.append(row)
            if len(waiting) == batch_size * accumulation:
                yield _stream_batch(waiting, start, batch_size, keep_rows=keep_rows, is_complete=True)
                start += len(waiting)
                waiting = []
    if drop_last:
        waiting = waiting[: len(waiting) // batch_size * batch_size]
    if waiting:
        is_complete = len(waiting) > batch_size * (accumulation - 1)
        yield _stream_batch(waiting, start, batch_size, keep_rows=keep_rows, is_complete=is_complete)


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


def default_collator(tokenizer: Any) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """Padded batches of prepared rows: what an own loss, and a metric that wants logits, get."""
    pad_token_id = int(tokenizer.pad_token_id)
    return lambda features: pad(features, pad_token_id)


def pad(features: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Collate to `input_ids`, `attention_mask` and `labels` of B x L, padded on the right.

    A packed block becomes a row per document, since documents in one row would see each other.

    Example: a block of documents 5 6 and 7, and a row 8, make three rows: [5 6], [7 pad], [8 pad].
    """
    import torch

    documents = [document for feature in features for document in _documents(feature)]
    length = max(len(ids) for ids, _ in documents)
    ids_BL = torch.full((len(documents), length), pad_token_id, dtype=torch.int64)
    is_real_BL = torch.zeros((len(documents), length), dtype=torch.int64)
    labels_BL = torch.full((len(documents), length), IGNORE_INDEX, dtype=torch.int64)
    for row, (ids, labels) in enumerate(documents):
        ids_BL[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
        is_real_BL[row, : len(ids)] = 1
        labels_BL[row, : len(ids)] = torch.as_tensor(labels, dtype=torch.int64)
    return {"input_ids": ids_BL, "attention_mask": is_real_BL, "labels": labels_BL}


def _documents(feature: Mapping[str, Any]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Ids and labels of each document of a row."""
    ids, labels = feature["input_ids"], feature.get("labels")
    labels = ids if labels is None else labels
    start = 0
    for length in feature.get("seq_lengths") or (len(ids),):
        yield ids[start : start + length], labels[start : start + length]
        start += length
