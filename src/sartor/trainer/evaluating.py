"""`evaluate` and `predict`: our own pass by default, Trainer's padded one where someone asks for logits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import PredictionOutput, has_length, speed_metrics

from sartor.engine.precision import autocast
from sartor.run import evaluate as evaluation
from sartor.trainer.examples import Examples, device_batches, pad
from sartor.trainer.setup import engine_for

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer


def lazy_loader(
    dataset: Any, batch_size: int, collate: Callable[[Any], Any], *, drop_last: bool = False
) -> DataLoader[Any]:
    """What callbacks get as a dataloader.

    It has a length and a data set, and works when iterated; we don't iterate it.
    """
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, drop_last=drop_last)


def wants_logits(trainer: SFTTrainer) -> bool:
    """Whether a metric is computed from logits."""
    return trainer.compute_metrics is not None or trainer.preprocess_logits_for_metrics is not None


def evaluate_one(trainer: SFTTrainer, dataset: Any, *, prefix: str, ignore_keys: list[str] | None) -> dict[str, float]:
    """Evaluate on one prepared data set, and log it as Trainer does."""
    trainer._memory_tracker.start()
    loader = lazy_loader(dataset, trainer.args.eval_batch_size, trainer.data_collator)
    trainer.callback_handler.eval_dataloader = loader
    start_time = time.time()
    if wants_logits(trainer) or trainer.uses_padded_batches:
        metrics, num_samples = _padded(trainer, loader, prefix, ignore_keys)
    else:
        metrics, num_samples = _own(trainer, dataset, prefix)
    measured = {key: metrics.pop(key) for key in list(metrics) if key in _trl_names(prefix)}
    metrics.update(
        speed_metrics(prefix, start_time, num_samples, math.ceil(num_samples / trainer.args.eval_batch_size))
    )
    trainer.pending_metrics = measured
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    trainer._memory_tracker.stop_and_update_metrics(metrics)
    return metrics


def _trl_names(prefix: str) -> set[str]:
    """Keys that come last in the log, as in trl's."""
    return {f"{prefix}_entropy", f"{prefix}_mean_token_accuracy", f"{prefix}_num_tokens"}


def _own(trainer: SFTTrainer, dataset: Any, prefix: str) -> tuple[dict[str, float], int]:
    """Our own pass: flat rows, sums over targets."""

    def on_batch() -> None:
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)

    with engine_for(trainer, longest_tokens=_longest(dataset), trains=False) as engine:
        found = evaluation.evaluate(
            engine,
            device_batches(_rows(dataset), trainer.args.eval_batch_size),
            name=f"{prefix} data",
            on_batch=on_batch,
        )
    metrics = {
        f"{prefix}_loss": found.loss,
        f"{prefix}_entropy": found.entropy,
        f"{prefix}_mean_token_accuracy": found.token_accuracy,
        f"{prefix}_num_tokens": float(trainer.total_train_tokens),
    }
    return metrics, found.num_examples


def _padded(
    trainer: SFTTrainer, loader: DataLoader[Any], prefix: str, ignore_keys: list[str] | None
) -> tuple[dict[str, float], int]:
    """Trainer's own loop over padded batches; keeps logits only where a metric wants them."""
    loss_only = True if trainer.compute_metrics is None and trainer.preprocess_logits_for_metrics is None else None
    with engine_for(trainer, longest_tokens=_longest(loader.dataset), trains=False) as engine:
        with autocast(engine.device, engine.compute_dtype):
            output = trainer.evaluation_loop(
                loader,
                description="Evaluation",
                prediction_loss_only=loss_only,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            )
        if not trainer.uses_padded_batches:  # the loss is ours: weighted by tokens
            found = evaluation.evaluate(
                engine, device_batches(_rows(loader.dataset), trainer.args.eval_batch_size), name=f"{prefix} data"
            )
            output.metrics[f"{prefix}_loss"] = found.loss
            output.metrics[f"{prefix}_entropy"] = found.entropy
            output.metrics[f"{prefix}_mean_token_accuracy"] = found.token_accuracy
            output.metrics[f"{prefix}_num_tokens"] = float(trainer.total_train_tokens)
    return dict(output.metrics), int(output.num_samples or 0)


def predict_one(trainer: SFTTrainer, dataset: Any, *, prefix: str, ignore_keys: list[str] | None) -> PredictionOutput:
    """Loss and token accuracy of a data set; logits and labels only where a metric asks for them."""
    trainer._memory_tracker.start()
    loader = lazy_loader(dataset, trainer.args.eval_batch_size, trainer.data_collator)
    trainer.callback_handler.eval_dataloader = loader
    start_time = time.time()
    if not (wants_logits(trainer) or trainer.uses_padded_batches):
        metrics, num_samples = _own(trainer, dataset, prefix)
        metrics.pop(f"{prefix}_num_tokens")
        predictions = labels = None
    else:
        with engine_for(trainer, longest_tokens=_longest(dataset), trains=False) as engine:
            with autocast(engine.device, engine.compute_dtype):
                output = trainer.evaluation_loop(
                    loader, description="Prediction", ignore_keys=ignore_keys, metric_key_prefix=prefix
                )
        metrics, num_samples = dict(output.metrics), int(output.num_samples or 0)
        predictions, labels = output.predictions, output.label_ids
    metrics.update(
        speed_metrics(prefix, start_time, num_samples, math.ceil(num_samples / trainer.args.eval_batch_size))
    )
    trainer.control = trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, metrics)
    trainer._memory_tracker.stop_and_update_metrics(metrics)
    return PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)


def _longest(dataset: Any) -> int:
    """Tokens of the longest document; 0 for a stream, of which nothing is known."""
    if not has_length(dataset) or "input_ids" not in (getattr(dataset, "column_names", None) or ()):
        return 0
    return Examples(dataset).longest_document()


def _rows(dataset: Any) -> Iterator[Any]:
    rows: Iterable[Any] = dataset
    yield from rows


def default_collator(tokenizer: Any) -> Callable[[Any], dict[str, torch.Tensor]]:
    """Padded batches of prepared rows."""
    pad_token_id = int(tokenizer.pad_token_id)
    return lambda features: pad(features, pad_token_id)
