"""What a run trains on.

The prepared data set as optimizer batches, map-style or streamed, and what each batch costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformers.trainer_utils import has_length

from sartor.engine.flops import step_flops
from sartor.engine.traits import ModelTraits, base_model
from sartor.run.loop import OptimizerBatch
from sartor.run.stepper import count_targets
from sartor.trainer.examples import Examples, stream_batches

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer


class Feed:
    """The training data of one `train()`."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self._trainer = trainer
        self._dataset = trainer.train_dataset
        self._examples = Examples(self._dataset) if has_length(self._dataset) else None
        self._weights = base_model(trainer.model).num_parameters(exclude_embeddings=True)
        self.traits: ModelTraits | None = None
        """Set when the engine is there; without it no operations are counted."""
        self.last_flops = 0.0
        """Operations of the batch that was given out last, for the share of the device's rate."""
        self.last_total_flos = 0.0
        """The same by transformers' rule, 6 x weights x tokens, for `state.total_flos`; padding not included."""

    def longest_document(self) -> int:
        """Tokens of the longest document; 0 for a stream, of which nothing is known."""
        return 0 if self._examples is None else self._examples.longest_document()

    def batches(self, epoch: int) -> Iterator[OptimizerBatch]:
        """The optimizer batches of an epoch; see `run.loop.loop`."""
        args = self._trainer.args
        size, accumulation = self._trainer._train_batch_size, args.gradient_accumulation_steps
        keep_rows = self._trainer.uses_padded_batches
        if self._examples is None:
            batches = stream_batches(
                self._dataset,
                epoch,
                batch_size=size,
                accumulation=accumulation,
                drop_last=args.dataloader_drop_last,
                keep_rows=keep_rows,
            )
        else:
            batches = self._examples.batches(
                epoch,
                batch_size=size,
                accumulation=accumulation,
                seed=args.data_seed if args.data_seed is not None else args.seed,
                strategy=str(args.train_sampling_strategy),
                drop_last=args.dataloader_drop_last,
                keep_rows=keep_rows,
            )
        for batch in batches:
            self._count(batch)
            yield batch

    def _count(self, batch: OptimizerBatch) -> None:
        lengths = [length for example in batch.examples for length in example.seq_lengths or (len(example.input_ids),)]
        self.last_total_flos = 6.0 * self._weights * sum(lengths)
        if self.traits is not None:
            targets = sum(count_targets(example) for example in batch.examples)
            self.last_flops = step_flops(self.traits, lengths, targets)
