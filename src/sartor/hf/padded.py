"""Users' own losses and collators: Trainer's padded per-device batches, with full logits.

A subclass that overrides `compute_loss`, a `compute_loss_func` or a custom `data_collator` expects Trainer's batches.
They get them, and pay with padding and full logits, which the trainer says aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sartor.batching.cut import make_micro_batch
from sartor.engine.noise import add_noise
from sartor.engine.precision import autocast
from sartor.engine.step import Engine
from sartor.engine.traits import base_model
from sartor.hf.base import SessionTrainer
from sartor.hf.weighted import refuse_weighted_rows
from sartor.records import IGNORE_INDEX, Example, Layout, LossSums, MicroBatch, StepResult
from sartor.run.loop import OptimizerBatch
from sartor.run.state import generator_states, restore_generators
from sartor.run.stepper import EngineStepper, Updater

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class PaddedStepper(EngineStepper):
    """Steps through `trainer.compute_loss`, one padded device batch at a time."""

    def __init__(self, trainer: SessionTrainer, engine: Engine, updater: Updater, collate: Collate) -> None:
        super().__init__(engine, updater)
        self._trainer = trainer
        self._collate = collate

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        """See `loop.Stepper`.  The logged loss is the sum of what `compute_loss` returned, as Trainer logs it.

        Raises:
            NonFiniteError: it is not finite, and the policy is to stop.
            OutOfMemoryError: a device batch does not fit, even with activations recomputed.
        """
        engine, updater = self._engine, self._updater
        engine.model.train()
        before = generator_states()
        updater.steps.begin()
        recovery = updater.recovery

        def undo() -> None:
            updater.discard()
            restore_generators(before)

        # A loss of the user's own may be anything of its batch: only the engine's part can be made to need less.
        result = recovery.retry(
            "forward or backward",
            lambda: self._gradients(batch),
            lambda: recovery.try_again() or recovery.recompute(),
            undo,
        )
        if not torch.isfinite(result.sums.loss_sum):
            mean = float(result.sums.loss_sum) / result.sums.num_targets
            return updater.refuse(result, "the loss", mean, batch.keys)
        return result

    def _gradients(self, batch: OptimizerBatch) -> StepResult:
        trainer, engine = self._trainer, self._engine
        inputs = [
            trainer._prepare_inputs(self._collate(self._features(batch, part))) for part in batch.device_batches()
        ]
        num_items = trainer._get_num_items_in_batch(inputs, engine.device)
        trainer.current_gradient_accumulation_steps = len(inputs)
        num_tokens = sum(_num_tokens(one) for one in inputs)  # first: a loss may take things out of its inputs
        total = torch.zeros((), device=engine.device)
        guard = self._updater.recovery.guard
        for one, part in zip(inputs, batch.device_batches(), strict=True):
            padded_tokens = _padded_tokens(one)
            guard.before(padded_tokens, trains=True)
            with autocast(engine.device, engine.compute_dtype), self._noise(one, batch.keys[part]):
                loss = trainer.compute_loss(engine.model, one, num_items_in_batch=num_items)
            if not _scales_itself(trainer, num_items is not None):
                loss = loss / len(inputs)
            (loss * self._updater.loss_scale).backward()
            total += loss.detach().float()
            guard.after(padded_tokens, trains=True)
        zero = torch.zeros((), device=engine.device)
        weight = 1 if num_items is None else max(int(num_items), 1)
        # sums, so that mean = sum / targets gives back the loss that was optimized
        sums = LossSums(total * weight, zero, zero, weight)
        return StepResult(sums, None, num_tokens, len(inputs), batch.keys)

    def _features(self, batch: OptimizerBatch, part: slice) -> list[dict[str, Any]]:
        """A device batch as a collator wants it, without columns it does not expect, unless the user asked for all."""
        rows = [dict(row) for row in batch.rows[part]]
        refuse_weighted_rows(self._trainer, rows)
        if not self._trainer.args.remove_unused_columns or "input_ids" not in rows[0]:
            return rows
        names = ("input_ids", "labels", "seq_lengths")
        return [{name: row[name] for name in names if name in row} for row in rows]

    @contextmanager
    def _noise(self, inputs: dict[str, Any], keys: Sequence[int]) -> Iterator[None]:
        """NEFTune's noise on the embeddings of this batch: each row the same as in a flat one."""
        settings = self._engine.settings
        if not settings.neftune_noise_alpha:
            yield
            return
        micro = _rows_as_documents(inputs, keys)
        alpha, step = settings.neftune_noise_alpha, self._updater.steps.done

        def hook(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            return add_noise(output, micro, Layout.PADDED, alpha=alpha, seed=settings.seed, step=step)

        handle = base_model(self._engine.model).get_input_embeddings().register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _rows_as_documents(inputs: dict[str, Any], keys: Sequence[int]) -> MicroBatch:
    """Length and key of each row of a padded batch: what the noise is scaled and drawn by."""
    ids_BL = inputs["input_ids"]
    is_real_BL = inputs.get("attention_mask")
    lengths = [int(n) for n in (torch.ones_like(ids_BL) if is_real_BL is None else is_real_BL).sum(1)]
    if len(keys) != len(lengths):  # a collator of the user's own made other rows than it was given
        keys = range(len(lengths))
    ids = ids_BL.tolist()
    examples = [Example(ids[row][:length], ids[row][:length]) for row, length in enumerate(lengths)]
    return make_micro_batch(examples, keys)


def _num_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a padded batch that are not padding."""
    is_real = inputs.get("attention_mask")
    if torch.is_tensor(is_real):
        return int(is_real.sum())
    ids = inputs.get("input_ids")
    return int(ids.numel()) if torch.is_tensor(ids) else 0


def _padded_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a padded batch with their padding: what memory is needed for; at least 1."""
    ids = inputs.get("input_ids")
    return max(1, int(ids.numel())) if torch.is_tensor(ids) else 1


def _scales_itself(trainer: Any, counted: bool) -> bool:
    """Whether the loss was already divided by the items of the whole optimizer batch.

    `Trainer.training_step`'s rule.
    """
    declared = trainer.loss_is_scaled_for_ga
    if declared is not None:
        return bool(declared)
    return trainer.compute_loss_func is not None or (bool(trainer.model_accepts_loss_kwargs) and counted)


def default_collator(tokenizer: Any) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """Padded batches of prepared rows: what an own loss, and a metric that wants logits, get."""
    pad_token_id = int(tokenizer.pad_token_id)
    return lambda features: pad(features, pad_token_id)


def pad(features: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Collate to `input_ids`, `attention_mask` and `labels` of B x L, padded on the right.

    A packed block becomes a row per document, since documents in one row would see each other.

    Example: a block of documents 5 6 and 7, and a row 8, make three rows: [5 6], [7 pad], [8 pad].
    """
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
