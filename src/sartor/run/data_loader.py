"""What a run trains on.

The prepared data set as optimizer batches, map-style or streamed, and what each batch costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from transformers.trainer_utils import has_length

from sartor.engine.flops import step_flops
from sartor.engine.traits import ModelTraits, base_model
from sartor.errors import DataError
from sartor.run.examples import Examples, stream_batches
from sartor.run.fingerprints import ExampleDigest
from sartor.run.loop import OptimizerBatch
from sartor.run.settings import RunSettings


class TrainDataLoader:
    """The training data of one `train()`."""

    def __init__(self, dataset: Any, model: Any, settings: RunSettings) -> None:
        """Args:
        dataset: prepared.
        model: that is trained.
        settings: of the run.
        """
        self.settings = settings
        """As they are now: the plan may split an optimizer batch in another way."""
        self._dataset = dataset
        self._examples = Examples(self._dataset) if has_length(self._dataset) else None
        self._weights = base_model(model).num_parameters(exclude_embeddings=True)
        self.traits: ModelTraits | None = None
        """Set when the engine is there; without it no operations are counted."""
        self.last_flops = 0.0
        """Operations of the batch that was given out last, for the share of the device's rate."""
        self.last_total_flos = 0.0
        """The same by transformers' rule, 6 x weights x tokens, for `state.total_flos`; padding not included."""

        self._taken = 0
        """Optimizer batches of the current epoch that were given out, or left out at its beginning."""
        self._digest = ExampleDigest()
        """Of a stream's examples of the current epoch."""
        self._start: Mapping[str, Any] | None = None
        self._on_ready: Callable[[], None] = lambda: None
        self._stops = False

    def longest_document(self) -> int:
        """Tokens of the longest document; 0 for a stream, of which nothing is known."""
        return 0 if self._examples is None else self._examples.longest_document()

    @property
    def examples(self) -> Examples | None:
        """What can be addressed by number; None for a stream."""
        return self._examples

    def groups(self, epoch: int) -> Iterator[list[list[int]]]:
        """Indices of the device batches of each optimizer batch of an epoch; nothing for a stream."""
        return iter(()) if self._examples is None else self._examples.groups(epoch, self.settings)

    def start_at(self, cursor: Mapping[str, Any], on_ready: Callable[[], None], *, stops: bool) -> None:
        """Begin where a cursor says, in a run that is resumed.

        Args:
            cursor: what `cursor` returned.
            on_ready: is called when the place is found, before the next row is read.
            stops: whether that epoch gives no more batches.
        """
        self._start, self._on_ready, self._stops = cursor, on_ready, stops

    def cursor(self, epoch: int, num_device_batches: int) -> dict[str, Any]:
        """Where the data are: the epoch, and how many of its batches were given out.

        Args:
            epoch: the current one, or the next one where it is over.
            num_device_batches: seen in it.
        """
        taken = self._taken if num_device_batches else 0
        stream = self._digest.hexdigest() if self._examples is None and taken else ""
        return {"epoch": epoch, "device_batches": num_device_batches, "optimizer_batches": taken, "stream": stream}

    def batches(self, epoch: int) -> Iterator[OptimizerBatch]:
        """The optimizer batches of an epoch; see `run.loop.loop`.

        Raises:
            DataError: a stream gives other rows than before the run was interrupted.
        """
        self._taken, self._digest = 0, ExampleDigest()
        start, self._start = self._start, None
        skip = int(start["optimizer_batches"]) if start is not None else 0
        if self._examples is not None:
            self._taken = skip
        batches = self._batches(epoch, skip)
        if self._examples is None:
            for batch in islice(batches, skip):
                self._take(batch)
            if start is not None and skip and self._digest.hexdigest() != start["stream"]:
                raise DataError(
                    f"the stream of train_dataset gives other rows in epoch {epoch} than before the run was "
                    f"interrupted, among its first {skip} optimizer batches: it can only be gone on from where the "
                    "rows come again in the same order."
                )
        if start is not None:
            self._on_ready()
            if self._stops:
                return
        for batch in batches:
            self._take(batch)
            self._count(batch)
            yield batch

    def _take(self, batch: OptimizerBatch) -> None:
        self._taken += 1
        if self._examples is None:
            for example in batch.examples:
                self._digest.add(example)

    def _batches(self, epoch: int, skip: int) -> Iterator[OptimizerBatch]:
        """Those of an epoch; without the first ones, where rows can be addressed."""
        settings = self.settings
        if self._examples is None:
            return stream_batches(self._dataset, epoch, settings, keep_rows=settings.own_loss)
        return self._examples.batches(epoch, settings, keep_rows=settings.own_loss, skip=skip)

    def _count(self, batch: OptimizerBatch) -> None:
        lengths = [length for example in batch.examples for length in example.document_lengths]
        self.last_total_flos = 6.0 * self._weights * sum(lengths)
        if self.traits is not None:
            self.last_flops = step_flops(self.traits, lengths, batch.num_targets)
