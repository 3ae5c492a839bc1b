"""Users' own losses and collators: Trainer's padded per-device batches, with full logits.

A subclass that overrides `compute_loss`, a `compute_loss_func` or a custom `data_collator` expects Trainer's batches.
They get them, and pay with padding and full logits, which the trainer says aloud.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sartor.engine.precision import autocast
from sartor.engine.step import Engine
from sartor.records import IGNORE_INDEX, LossSums, StepResult
from sartor.run.loop import OptimizerBatch
from sartor.run.stepper import Updater
from sartor.trainer.examples import as_features


class PaddedStepper:
    """Steps through `trainer.compute_loss`, one padded device batch at a time."""

    def __init__(
        self,
        trainer: Any,
        engine: Engine,
        updater: Updater,
        collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
        rows: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        self._trainer = trainer
        self._engine = engine
        self._updater = updater
        self._collate = collate
        self._rows = rows

    def gradients(self, batch: OptimizerBatch) -> StepResult:
        """See `loop.Stepper`.  The logged loss is the sum of what `compute_loss` returned, as Trainer logs it."""
        trainer, engine = self._trainer, self._engine
        engine.model.train()
        inputs = [self._to_device(self._collate(group)) for group in self._features(batch)]
        num_items = sum(_num_items(one) for one in inputs)
        counted = num_items > 0
        items = torch.tensor(num_items, device=engine.device) if counted else None
        total = torch.zeros((), device=engine.device)
        for one in inputs:
            with autocast(engine.device, engine.compute_dtype):
                loss = trainer.compute_loss(engine.model, one, num_items_in_batch=items)
            if not _scales_itself(trainer, counted):
                loss = loss / len(inputs)
            (loss * self._updater.loss_scale).backward()
            total += loss.detach().float()
        num_tokens = sum(_num_tokens(one) for one in inputs)
        zero = torch.zeros((), device=engine.device)
        # sums, so that mean = sum / targets gives back the loss that was optimized
        sums = LossSums(total * max(num_items, 1), zero, zero, max(num_items, 1))
        return StepResult(sums, None, num_tokens, len(inputs))

    def clip(self, result: StepResult) -> StepResult:
        """See `loop.Stepper`."""
        return dataclasses.replace(result, grad_norm=self._updater.clip())

    def update(self) -> None:
        """See `loop.Stepper`."""
        self._updater.update()

    def schedule(self) -> float:
        """See `loop.Stepper`."""
        return self._updater.schedule()

    def discard(self) -> None:
        """See `loop.Stepper`."""
        self._updater.discard()

    def _features(self, batch: OptimizerBatch) -> Iterator[list[dict[str, Any]]]:
        """Each device batch as its collator wants it: whole rows where the data set is indexed, else ids and labels."""
        start = 0
        for size in batch.device_batch_sizes:
            part = slice(start, start + size)
            if self._rows is None:
                yield [as_features(example) for example in batch.examples[part]]
            else:
                yield [self._rows(key) for key in batch.keys[part]]
            start += size

    def _to_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        device = self._engine.device
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}


def _num_items(inputs: dict[str, Any]) -> int:
    """Targets of a padded batch: labels that are not ignored, but for each row's first."""
    labels = inputs.get("labels")
    return int((labels[..., 1:] != IGNORE_INDEX).sum()) if torch.is_tensor(labels) else 0


def _num_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a padded batch that are not padding."""
    mask = inputs.get("attention_mask")
    if torch.is_tensor(mask):
        return int(mask.sum())
    ids = inputs.get("input_ids")
    return int(ids.numel()) if torch.is_tensor(ids) else 0


def _scales_itself(trainer: Any, counted: bool) -> bool:
    """Whether the loss was already divided by the items of the whole optimizer batch.

    `Trainer.training_step`'s rule.
    """
    declared = trainer.loss_is_scaled_for_ga
    if declared is not None:
        return bool(declared)
    return trainer.compute_loss_func is not None or (bool(trainer.model_accepts_loss_kwargs) and counted)
