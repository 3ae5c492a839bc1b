"""Prepares a stream: the same steps as for rows in memory, each done when its rows are read.

What comes in: a stream and an encoder.  What goes out: `PreparedData` with a stream of examples, whose counts and
places are those of what has been read by now.  What it keeps true: each row is counted once, however many epochs read
it; memory does not grow with the stream.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.counts import Counts
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.parts import encoding_part
from sartor.data.encoding.request import Packer, Request
from sartor.data.encoding.store import Written
from sartor.data.reading.places import RecentPlaces
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import places_of, rows_of
from sartor.data.targets.weights import may_have_weights
from sartor.data.tokens.table import TokenRows, features
from sartor.data.tokens.tokenizing import run
from sartor.errors import SartorWarning
from sartor.records import DataSettings, DataSummary, PreparedData

if TYPE_CHECKING:
    pass

ROWS_PER_BATCH = 64
"""Rows that are read ahead of the one that is asked for."""
ROWS_PER_PACKING = 1000
"""Rows that are read ahead to be packed together: as many as a data set in memory packs together."""

STREAM_NOTE = "A stream: its rows are checked and counted as they are read."
"""Stands in the summary until then."""
READ_NOTE = "A stream: counted are the rows that were read by now, some of them ahead of training."

Batch = Mapping[str, Sequence[Any]]


def prepare_stream(request: Request, columns: Sequence[str], encoder: Encoder) -> PreparedData:
    """A stream of prepared rows.  Counts are not known before it is read, and stand at 0; `counted` tells them then.

    Args:
        columns: those of the rows.
    """
    dataset, reading, settings, pack = request.dataset, request.reading, request.settings, request.pack
    is_packed = "seq_lengths" in columns and "input_ids" in columns
    with_weights = may_have_weights(reading, columns, dataset.features)
    reader = _Reader(request, encoder, with_weights=with_weights)
    # Functions, not methods: `datasets` copies what is behind a method where it mixes streams, and counts with it.
    stream = dataset.map(
        lambda batch, indices: reader.encode(batch, indices),
        batched=True,
        batch_size=ROWS_PER_BATCH,
        with_indices=True,
        remove_columns=list(columns),
        features=features(with_documents=is_packed, with_weights=with_weights),
    )
    if settings.packing and pack is not None:
        if settings.shuffle_dataset:
            stream = stream.shuffle(seed=settings.seed)
        packer = _Packer(pack, settings, reader, with_weights=with_weights)
        stream = stream.map(
            lambda batch, indices: packer.pack(batch, indices),
            batched=True,
            batch_size=ROWS_PER_PACKING,
            with_indices=True,
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
    more = (*processes, *(mixing if is_mixed else ()))
    notes = (*reading.notes, *encoder.notes(Counter()), STREAM_NOTE, *more)
    summary = DataSummary(request.name, reading.format, 0, 0, 0, 0, 0, notes=notes)
    places = None
    if not settings.shuffle_dataset:  # which says nothing of the order that it makes
        places = packer.places if settings.packing and pack is not None else reader.places
    return PreparedData(stream, summary, places, lambda: reader.summary(more))


class _Reader:
    """Encodes a stream, and knows what was read of it."""

    def __init__(self, request: Request, encoder: Encoder, *, with_weights: bool) -> None:
        self._request = request
        self._encoder = encoder
        self._with_weights = with_weights
        self._counts = self._new_counts()
        self._num_rows = 0
        self.written = Written()
        """The examples that are given out, each counted once."""
        self.places = RecentPlaces()

    def _new_counts(self) -> Counts:
        return Counts(self._request.name, self._request.reading)

    def encode(self, batch: Batch, indices: list[int]) -> dict[str, list[Any]]:
        """Examples of some rows, given their numbers in this epoch.

        Raises:
            DataError: rows that cannot be used, unless these are skipped.
        """
        name, settings = self._request.name, self._request.settings
        rows = rows_of(batch)
        places = places_of(rows, indices[0], name)
        is_new = indices[-1] >= self._num_rows
        part = run(encoding_part(self._encoder, rows, places), self._encoder.tokenize)
        if settings.bad_rows != "skip":
            part.problems.raise_if_any(f"{name} data, rows {indices[0]} to {indices[-1]}", len(rows))
        if is_new:
            self._num_rows = indices[-1] + 1
            self._warn_of_skipped(part.problems)
        # A later epoch counts nothing twice.
        counts = self._counts if is_new else self._new_counts()
        counts.note(part)
        examples, kept = counts.cut(part.rows, part.places, settings)
        if is_new and not settings.packing:
            self.written.count(examples)
        if indices[0] == 0:
            self.places.restart()
        self.places.append(kept)
        return examples.to_lists(with_weights=self._with_weights)

    def _warn_of_skipped(self, found: ProblemLog) -> None:
        """Say of rows that are left out as they come the first of each kind; all are counted."""
        for kind, told in zip(found.counts, found.told(), strict=True):
            if kind not in self._counts.problems.counts:
                warnings.warn(
                    f"{self._request.name} data: skipped: {told} Others of this kind are left out too.",
                    SartorWarning,
                    stacklevel=2,
                )

    def summary(self, notes: tuple[str, ...]) -> DataSummary:
        """What was read by now."""
        return self._counts.summary(
            self._encoder, None, self.written, num_rows=self._num_rows, notes=(READ_NOTE, *notes)
        )


class _Packer:
    """Packs the examples of a stream, as many at a time as a data set in memory packs together."""

    def __init__(self, pack: Packer, settings: DataSettings, reader: _Reader, *, with_weights: bool) -> None:
        self._pack, self._settings, self._reader = pack, settings, reader
        self._with_weights = with_weights
        self._num_rows = 0
        self.places = RecentPlaces()
        """Of the blocks; of rows that were not shuffled."""

    def pack(self, batch: Batch, indices: list[int]) -> dict[str, list[Any]]:
        """Blocks of some examples, given their numbers in this epoch."""
        rows = TokenRows.from_lists(batch["input_ids"], batch["labels"], weights=batch.get("weights"))
        assert self._settings.max_length is not None
        packing = self._pack(rows.lengths, self._settings.max_length, self._settings.packing_strategy)
        blocks = rows.packed(packing)
        if indices[-1] >= self._num_rows:
            self._num_rows = indices[-1] + 1
            self._reader.written.count(blocks)
        if indices[0] == 0:
            self.places.restart()
        if not self._settings.shuffle_dataset:
            self.places.append(self._reader.places.between(indices[0], indices[-1] + 1).packed(packing))
        return blocks.to_lists(with_weights=self._with_weights)
