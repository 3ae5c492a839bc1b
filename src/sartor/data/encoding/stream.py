"""Prepares a stream: the same steps as for rows in memory, each done when its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.counts import notes_of
from sartor.data.encoding.cutting import cut
from sartor.data.encoding.parts import places_of, rows_of
from sartor.data.encoding.store import Packer
from sartor.data.encoding.table import TokenRows, features
from sartor.data.encoding.tokenizing import run
from sartor.data.encoding.tokens import Encoder
from sartor.data.encoding.usable import Skipped, encoding_usable
from sartor.data.reading.places import Places
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading
from sartor.data.targets.weights import may_have_weights
from sartor.records import DataSettings, DataSummary, PreparedData

if TYPE_CHECKING:
    import datasets

ROWS_PER_BATCH = 64
"""Rows that are read ahead of the one that is asked for."""
ROWS_PER_PACKING = 1000
"""Rows that are read ahead to be packed together: as many as a data set in memory packs together."""

Batch = Mapping[str, Sequence[Any]]


def prepare_stream(
    dataset: datasets.IterableDataset,
    columns: Sequence[str],
    encoder: Encoder,
    reading: Reading,
    settings: DataSettings,
    name: str,
    pack: Packer | None,
) -> PreparedData:
    """A stream of prepared rows.  Counts are not known before it is read, and stand at 0."""
    is_packed = "seq_lengths" in columns and "input_ids" in columns
    with_weights = may_have_weights(reading, columns, dataset.features)
    stream = dataset.map(
        _encoding(encoder, settings, name, with_weights=with_weights),
        batched=True,
        batch_size=ROWS_PER_BATCH,
        with_indices=True,
        remove_columns=list(columns),
        features=features(with_documents=is_packed, with_weights=with_weights),
    )
    if settings.packing and pack is not None:
        if settings.shuffle_dataset:
            stream = stream.shuffle(seed=settings.seed)
        stream = stream.map(
            _packing(pack, settings, with_weights=with_weights),
            batched=True,
            batch_size=ROWS_PER_PACKING,
            remove_columns=["input_ids", "labels", *(["weights"] if with_weights else [])],
            features=features(with_documents=settings.packing_strategy != "wrapped", with_weights=with_weights),
        )
    if settings.shuffle_dataset:
        stream = stream.shuffle(seed=settings.seed)
    processes = ("dataset_num_proc starts no processes for a stream.",) if (settings.num_proc or 1) > 1 else ()
    mixing = (
        "packing_strategy='wrapped': blocks are one running text of several rows, whose tokens see those before.",
    )
    is_mixed = settings.packing and settings.packing_strategy == "wrapped"
    said = ("A stream: its rows are checked and counted as they are read.", *processes, *(mixing if is_mixed else ()))
    notes = (*notes_of(reading, encoder), *said)
    return PreparedData(stream, DataSummary(name, reading.format, 0, 0, 0, 0, 0, notes=notes))


def _encoding(
    encoder: Encoder, settings: DataSettings, name: str, *, with_weights: bool
) -> Callable[[Batch, list[int]], dict[str, list[Any]]]:
    summary = DataSummary(name, encoder.format, 0, 0, 0, 0, 0)
    skips, skipped = settings.bad_rows == "skip", Skipped(name)

    def encode(batch: Batch, indices: list[int]) -> dict[str, list[Any]]:
        problems = ProblemLog()
        rows = rows_of(batch)
        places = places_of(rows, indices[0], name)
        encoded, places = run(encoding_usable(encoder, rows, places, problems, skip=True), encoder.tokenize)
        if skips:
            skipped.update(problems)
        else:
            problems.raise_if_any(f"{name} data, rows {indices[0]} to {indices[-1]}", len(rows))
        return cut(encoded, settings, summary, Places.of_texts(places))[0].to_lists(with_weights=with_weights)

    return encode


def _packing(pack: Packer, settings: DataSettings, *, with_weights: bool) -> Callable[[Batch], dict[str, list[Any]]]:
    def packed(batch: Batch) -> dict[str, list[Any]]:
        rows = TokenRows.from_lists(batch["input_ids"], batch["labels"], weights=batch.get("weights"))
        assert settings.max_length is not None
        packed = rows.packed(pack(rows.lengths, settings.max_length, settings.packing_strategy))
        return packed.to_lists(with_weights=with_weights)

    return packed
