"""Prepared data sets as examples: the only place that reads rows of `datasets` while training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sartor.batching import order
from sartor.records import IGNORE_INDEX, Example
from sartor.run.loop import OptimizerBatch


def example_of(row: Mapping[str, Any]) -> Example:
    """One prepared row; without `labels`, every token is trained, as trl's collator does.

    A row without `input_ids` (a data set that a user's own collator tokenizes) is an example without tokens.
    """
    input_ids = row.get("input_ids", ())
    labels = row.get("labels")
    return Example(input_ids, input_ids if labels is None else labels, tuple(row.get("seq_lengths") or ()))


class Examples:
    """A prepared data set of known length."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        return example_of(self.dataset[index])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example; read once."""
        if self._lengths is None:
            self._lengths = [len(ids) for ids in self.dataset["input_ids"]]
        return self._lengths

    def longest_document(self) -> int:
        """Tokens of the longest document."""
        if "seq_lengths" in self.dataset.column_names:
            return max((max(lengths) for lengths in self.dataset["seq_lengths"] if lengths), default=0)
        return max(self.lengths, default=0)

    def batches(
        self,
        epoch: int,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        strategy: str,
        drop_last: bool,
    ) -> Iterator[OptimizerBatch]:
        """The optimizer batches of an epoch."""
        indices = order.epoch_order(
            len(self),
            seed=seed,
            epoch=epoch,
            strategy=strategy,
            lengths=self.lengths if strategy == "group_by_length" else (),
            batch_size=batch_size * accumulation,
        )
        device_batches = order.device_batches(indices, batch_size, drop_last=drop_last)
        for group in order.optimizer_batches(device_batches, accumulation):
            keys = tuple(index for batch in group for index in batch)
            yield OptimizerBatch(tuple(self[key] for key in keys), keys, tuple(len(batch) for batch in group))


def stream_batches(
    dataset: Iterable[Mapping[str, Any]], epoch: int, *, batch_size: int, accumulation: int, drop_last: bool
) -> Iterator[OptimizerBatch]:
    """The optimizer batches of one pass over a stream, in its own order."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    waiting: list[tuple[Example, ...]] = []
    start = 0
    for batch in device_batches(dataset, batch_size, drop_last=drop_last):
        waiting.append(batch)
        if len(waiting) == accumulation:
            yield _stream_batch(waiting, start, is_complete=True)
            start += sum(len(batch) for batch in waiting)
            waiting = []
    if waiting:
        yield _stream_batch(waiting, start, is_complete=False)


def _stream_batch(batches: Sequence[tuple[Example, ...]], start: int, *, is_complete: bool) -> OptimizerBatch:
    examples = tuple(example for batch in batches for example in batch)
    keys = tuple(range(start, start + len(examples)))
    return OptimizerBatch(examples, keys, tuple(len(batch) for batch in batches), is_complete)


def device_batches(
    rows: Iterable[Mapping[str, Any]], batch_size: int, *, drop_last: bool = False
) -> Iterator[tuple[Example, ...]]:
    """Consecutive rows as device batches."""
    batch: list[Example] = []
    for row in rows:
        batch.append(example_of(row))
        if len(batch) == batch_size:
            yield tuple(batch)
            batch = []
    if batch and not drop_last:
        yield tuple(batch)


def as_features(example: Example) -> dict[str, list[int]]:
    """An example as a collator wants it."""
    return {"input_ids": list(example.input_ids), "labels": list(example.labels)}


def pad(features: Sequence[Mapping[str, Any]], pad_token_id: int, multiple: int | None = None) -> dict[str, Any]:
    """Collate to `input_ids`, `attention_mask` and `labels` of B x L, padded on the right."""
    import torch

    length = max(len(feature["input_ids"]) for feature in features)
    if multiple:
        length = -(-length // multiple) * multiple
    ids_BL = torch.full((len(features), length), pad_token_id, dtype=torch.int64)
    mask_BL = torch.zeros((len(features), length), dtype=torch.int64)
    labels_BL = torch.full((len(features), length), IGNORE_INDEX, dtype=torch.int64)
    for row, feature in enumerate(features):
        ids = torch.as_tensor(feature["input_ids"], dtype=torch.int64)
        labels = feature.get("labels")
        ids_BL[row, : len(ids)] = ids
        mask_BL[row, : len(ids)] = 1
        labels_BL[row, : len(ids)] = ids if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}
