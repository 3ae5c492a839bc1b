"""Keeps encoded rows while they come, in memory or in files, and writes them in their final order as an Arrow table.

What comes in: batches of `TokenRows`, then their arrangement.  What goes out: a table, in memory or in a file that is
mapped into memory.  What it keeps true: with files, no more than a batch of tokens is in memory at a time, but for the
lengths of rows and blocks; table and fingerprint are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sartor.data.encoding.request import Packer
from sartor.data.tokens.table import TokenRows
from sartor.records import DataSettings, Packing

if TYPE_CHECKING:
    import datasets
    import pyarrow

Integers = NDArray[np.int64]
Arrangement = Packing | Integers | None
"""Blocks, or the order of rows; None: rows as they are."""

MADE = ("num_examples", "num_tokens", "num_targets", "longest_tokens")
"""Fields of a summary, and of `Written`, that say what the examples hold."""
EXAMPLES_PER_BATCH = 1000
"""Examples in memory at a time while the table is written; Arrow's lists count tokens in 32 bits, batch by batch."""


class MemoryStore:
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self._parts: list[TokenRows] = []

    def append(self, rows: TokenRows) -> None:
        """More rows, behind those that are there."""
        self._parts.append(rows)

    def rows(self) -> TokenRows:
        """All rows."""
        self._parts = [TokenRows.concatenate(self._parts)]
        return self._parts[0]

    def remove(self) -> None:
        """Forget the rows."""
        self._parts = []


class FileStore:
    """Keeps tokens in files of a folder, and lengths in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {name: self._path(name).open("wb") for name in ("ids", "labels")}
        self._lengths: list[Integers] = []
        self._documents: list[Sequence[int]] | None = None
        self._num_tokens = 0

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.raw"

    def append(self, rows: TokenRows) -> None:
        """More rows, behind those that are there.

        Raises:
            OSError: the disk is full.
        """
        _write(self._files["ids"], rows.input_ids)
        _write(self._files["labels"], rows.labels)
        if rows.weights is not None or "weights" in self._files:
            self._append_weights(rows)
        self._lengths.append(rows.lengths)
        if rows.documents is not None:
            self._documents = [] if self._documents is None else self._documents
            self._documents.extend(rows.documents)
        self._num_tokens += rows.num_tokens

    def _append_weights(self, rows: TokenRows) -> None:
        """Weights; tokens that came before the first weight weigh 1."""
        if "weights" not in self._files:
            self._files["weights"] = self._path("weights").open("wb")
            for start in range(0, self._num_tokens, 1 << 20):
                _write(self._files["weights"], np.ones(min(1 << 20, self._num_tokens - start), np.float32))
        weights = np.ones(rows.num_tokens, np.float32) if rows.weights is None else rows.weights
        _write(self._files["weights"], weights)

    def rows(self) -> TokenRows:
        """All rows; their tokens are read from the files where they are used."""
        for file in self._files.values():
            file.flush()
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        weights = self._mapped("weights", np.float32) if "weights" in self._files else None
        ids, labels = self._mapped("ids", np.int32), self._mapped("labels", np.int32)
        return TokenRows(ids, labels, np.cumsum(lengths), self._documents, weights)

    def _mapped(self, name: str, kind: Any) -> Any:
        if not self._num_tokens:
            return np.zeros(0, kind)  # an empty file cannot be mapped
        return np.memmap(self._path(name), kind, "r", shape=(self._num_tokens,))

    def remove(self) -> None:
        """Remove the files; rows that were given back are then gone."""
        for name, file in self._files.items():
            file.close()
            self._path(name).unlink(missing_ok=True)


def _write(file: IO[bytes], values: NDArray[Any]) -> None:
    file.write(np.ascontiguousarray(values).data)


def arrangement(lengths: Integers, settings: DataSettings, pack: Packer | None) -> Arrangement:
    """How rows are shuffled and packed: `shuffle_dataset` shuffles before and after packing, as in trl.

    An order is the one that `datasets.Dataset.shuffle(seed=seed)` gives.
    """

    def order(count: int) -> Integers:
        return np.random.default_rng(settings.seed).permutation(count)

    if not settings.packing:
        return order(len(lengths)) if settings.shuffle_dataset else None
    assert pack is not None
    assert settings.max_length is not None
    if not settings.shuffle_dataset:
        return pack(lengths, settings.max_length, settings.packing_strategy)
    rows = order(len(lengths))
    packing = pack(lengths[rows], settings.max_length, settings.packing_strategy)
    blocks = order(len(packing.pieces_per_block))
    counts = packing.pieces_per_block[blocks]
    firsts = (np.cumsum(packing.pieces_per_block) - packing.pieces_per_block)[blocks]
    pieces = np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    return Packing(
        rows[packing.rows[pieces]], packing.starts[pieces], packing.lengths[pieces], counts, packing.keeps_documents
    )


def arranged(rows: TokenRows, how: Arrangement) -> Iterator[TokenRows]:
    """The examples that an arrangement makes of rows, in order, so many at a time."""
    if not isinstance(how, Packing):
        count = len(rows) if how is None else len(how)
        for first in range(0, count, EXAMPLES_PER_BATCH):
            end = min(first + EXAMPLES_PER_BATCH, count)
            yield rows.slice(first, end) if how is None else rows.take(how[first:end])
        return
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(how.pieces_per_block)])
    for first in range(0, len(how.pieces_per_block), EXAMPLES_PER_BATCH):
        counts = how.pieces_per_block[first : first + EXAMPLES_PER_BATCH]
        part = slice(int(ends[first]), int(ends[first + len(counts)]))
        yield rows.packed(Packing(how.rows[part], how.starts[part], how.lengths[part], counts, how.keeps_documents))


class ContentDigest:
    """A digest of examples in their order, whatever batches they come in.

    It is of five columns, each on its own: so a data set has the same one whether it is in memory or in a file.
    """

    def __init__(self) -> None:
        self._columns = [xxhash.xxh3_128() for _ in range(5)]

    def add(
        self,
        input_ids: NDArray[Any],
        labels: NDArray[Any],
        lengths: NDArray[Any],
        documents: Sequence[Sequence[int]] | None,
        weights: NDArray[Any] | None,
    ) -> None:
        """More examples.

        Args:
            input_ids: of all of them, one after the other.
            labels: as many.
            lengths: tokens of each example.
            documents: lengths of the documents of each example; None where the data set has no packed blocks.
            weights: as many as `labels`; None where the data set has none.
        """
        told = [] if documents is None else [value for row in documents for value in (len(row), *row)]
        parts = (
            np.asarray(input_ids, np.int32),
            np.asarray(labels, np.int32),
            np.asarray(lengths, np.int64),
            np.array(told, np.int32),
            np.asarray([] if weights is None else weights, np.float32),
        )
        for column, values in zip(self._columns, parts, strict=True):
            column.update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """Of what was added so far."""
        return xxhash.xxh3_128_hexdigest("".join(column.hexdigest() for column in self._columns).encode())


@dataclass(slots=True)
class Written:
    """What a table holds."""

    num_examples: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    longest_tokens: int = 0
    fingerprint: str = ""
    """Of its content alone."""

    def counts(self) -> dict[str, Any]:
        """What is counted, under the names that it has in a summary."""
        return {name: getattr(self, name) for name in MADE}

    def count(self, examples: TokenRows) -> None:
        """Count more examples."""
        self.num_examples += len(examples)
        self.num_tokens += examples.num_tokens
        self.num_targets += examples.num_targets
        self.longest_tokens = max(self.longest_tokens, int(examples.lengths.max(initial=0)))


def write_table(rows: TokenRows, how: Arrangement, write: Callable[[pyarrow.RecordBatch], None]) -> Written:
    """Write the arranged rows batch by batch, and count them."""
    written = Written()
    digest = ContentDigest()
    for part in arranged(rows, how):
        write(part.record_batch())
        written.count(part)
        digest.add(part.input_ids, part.labels, part.lengths, part.documents, part.weights)
    written.fingerprint = digest.hexdigest()
    return written


def dataset_in_memory(rows: TokenRows, how: Arrangement = None) -> tuple[datasets.Dataset, Written]:
    """The arranged rows as a data set in memory."""
    import datasets
    import pyarrow

    batches: list[pyarrow.RecordBatch] = []
    written = write_table(rows, how, batches.append)
    table = pyarrow.Table.from_batches(batches or [rows.record_batch()])
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=written.fingerprint), written


def write_file(rows: TokenRows, how: Arrangement, path: Path) -> Written:
    """The arranged rows as an Arrow stream in a file, as `datasets` reads it.

    Raises:
        OSError: the disk is full.
    """
    import pyarrow

    schema = rows.slice(0, 0).record_batch().schema
    if isinstance(how, Packing):
        none = np.zeros(0, np.int64)
        schema = rows.packed(Packing(none, none, none, none, how.keeps_documents)).record_batch().schema
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        return write_table(rows, how, writer.write_batch)
