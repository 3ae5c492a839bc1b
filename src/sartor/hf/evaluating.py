"""`evaluate` and `predict`: our own pass by default, Trainer's padded one where someone asks for logits.

The two functions are called as Trainer's methods are, because transformers' memory tracker knows its callers by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.data_loader import DataLoaderShard
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, has_length, speed_metrics

from sartor.engine.precision import autocast
from sartor.hf.base import SessionTrainer
from sartor.hf.weighted import refuse_with_own_loss
from sartor.memory.limits import available_bytes
from sartor.run import evaluate as evaluation
from sartor.run.examples import longest_document
from sartor.run.setup import engine_for
from sartor.wording import amount

_LOGITS_COPIES = 4
"""Of a batch's logits: the model's, in float32, shifted for the loss, and its softmax."""
_LOGITS_ADVICE = (
    "its logits are there whole. Set a smaller per_device_eval_batch_size (with batch_eval_metrics=True the rows at "
    "once are never changed for you, since your metric has counted those that would come again), let "
    "preprocess_logits_for_metrics reduce them, or evaluate fewer or shorter rows."
)


def lazy_loader(
    dataset: Any, batch_size: int, collate: Callable[[Any], Any], *, drop_last: bool = False
) -> DataLoader[Any]:
    """What callbacks get as a dataloader.

    It has a length and a data set, and works when iterated; we don't iterate it.
    """
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, drop_last=drop_last)


def evaluate(trainer: SessionTrainer, dataset: Any, *, prefix: str, ignore_keys: list[str] | None) -> dict[str, float]:
    """Evaluate on one prepared data set, and log it as Trainer does."""
    trainer._memory_tracker.start()
    loader, start_time = _begin(trainer, dataset)
    if trainer.compute_metrics is not None or trainer.uses_padded_batches:
        loss_only = True if trainer.compute_metrics is None else None  # else args.prediction_loss_only decides
        output = _padded(trainer, loader, "Evaluation", prefix, ignore_keys, loss_only)
        metrics, num_samples = dict(output.metrics), int(output.num_samples or 0)
    else:
        metrics, num_samples = _own(trainer, dataset, prefix)
    measured = {key: metrics.pop(key) for key in _measured_names(prefix) if key in metrics}
    metrics.update(_speed(trainer, prefix, start_time, num_samples))
    trainer.pending_metrics = {**measured, f"{prefix}_num_tokens": float(trainer.total_train_tokens)}
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    trainer._memory_tracker.stop_and_update_metrics(metrics)
    return metrics


def predict(trainer: SessionTrainer, dataset: Any, *, prefix: str, ignore_keys: list[str] | None) -> PredictionOutput:
    """Loss and token accuracy of a data set; logits and labels only where a metric asks for them."""
    trainer._memory_tracker.start()
    loader, start_time = _begin(trainer, dataset)
    predictions = labels = None
    wants_logits = trainer.compute_metrics is not None or trainer.preprocess_logits_for_metrics is not None
    if wants_logits or trainer.uses_padded_batches:
        loss_only = None if wants_logits else True
        output = _padded(trainer, loader, "Prediction", prefix, ignore_keys, loss_only)
        metrics, num_samples = dict(output.metrics), int(output.num_samples or 0)
        predictions, labels = output.predictions, output.label_ids
    else:
        metrics, num_samples = _own(trainer, dataset, prefix)
    metrics.update(_speed(trainer, prefix, start_time, num_samples))
    trainer.control = trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, metrics)
    trainer._memory_tracker.stop_and_update_metrics(metrics)
    return PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)


def _begin(trainer: SessionTrainer, dataset: Any) -> tuple[DataLoader[Any], float]:
    """What callbacks get as the data, and when it began."""
    if not trainer.is_in_train:
        trainer.refresh()
    loader = _loader(trainer, dataset)
    trainer.callback_handler.eval_dataloader = loader
    return loader, time.time()


def _tell_cost(trainer: SessionTrainer, dataset: Any) -> None:
    """Say once what logits cost that are kept for a metric; or that none are, and the metric is not called."""
    args = trainer.args
    if trainer.has_told_logits:
        return
    trainer.has_told_logits = True
    if args.prediction_loss_only:
        trainer.say("prediction_loss_only=True: compute_metrics is not called, and no logits are kept.")
        return
    longest = longest_document(dataset) or args.max_length
    row = (longest or 0) * trainer.model.config.get_text_config().vocab_size * 4
    each = f": up to {amount(args.eval_batch_size * row, 1)} for a batch" if row else ""
    text = f"compute_metrics and predictions need logits{each}"
    if trainer.preprocess_logits_for_metrics is not None:
        text += ", and what preprocess_logits_for_metrics leaves of them is kept for all rows"
    elif args.batch_eval_metrics:
        text += "; none are kept"
    else:
        if has_length(dataset):
            text += f", and up to {amount(len(dataset) * row, 1)} for the {len(dataset):,} rows, which are all kept"
        else:
            text += ", and those of all rows of the stream are kept"
        text += ": preprocess_logits_for_metrics can reduce them, batch by batch"
    trainer.say(f"{text}. A second pass measures the loss.")


def _loader(trainer: SessionTrainer, dataset: Any, size: int | None = None) -> DataLoader[Any]:
    size, collate = size or trainer.args.eval_batch_size, trainer.data_collator
    if trainer.args.batch_eval_metrics:  # accelerate's knows its last batch, at which the metric is to be computed
        return DataLoaderShard(dataset, batch_size=size, collate_fn=collate)
    return lazy_loader(dataset, size, collate)


def _measured_names(prefix: str) -> tuple[str, ...]:
    """Keys that come last in the log, as in trl's."""
    return (f"{prefix}_entropy", f"{prefix}_mean_token_accuracy", f"{prefix}_perplexity")


def _speed(trainer: SessionTrainer, prefix: str, start_time: float, num_samples: int) -> dict[str, float]:
    num_steps = math.ceil(num_samples / trainer.args.eval_batch_size)
    speed: dict[str, float] = speed_metrics(prefix, start_time, num_samples, num_steps)
    return speed


def _own(trainer: SessionTrainer, dataset: Any, prefix: str) -> tuple[dict[str, float], int]:
    """Our own pass: flat rows, sums over targets."""

    def on_batch() -> None:
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
        trainer.pause()

    with engine_for(trainer.session, longest_tokens=lambda: longest_document(dataset), trains=False):
        found = _measure(trainer, dataset, prefix, on_batch)
    return {f"{prefix}_loss": found.loss, **_token_metrics(found, prefix)}, found.num_examples


def _measure(
    trainer: SessionTrainer, dataset: Any, prefix: str, on_batch: Callable[[], None] = lambda: None
) -> evaluation.Evaluation:
    assert trainer.recovery is not None
    size = trainer.args.eval_batch_size
    return evaluation.evaluate_dataset(trainer.recovery, dataset, size, name=f"{prefix} data", on_batch=on_batch)


def _token_metrics(found: evaluation.Evaluation, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_entropy": found.entropy,
        f"{prefix}_mean_token_accuracy": found.token_accuracy,
        f"{prefix}_perplexity": found.perplexity,
    }


def _padded(
    trainer: SessionTrainer,
    loader: DataLoader[Any],
    description: str,
    prefix: str,
    ignore_keys: list[str] | None,
    loss_only: bool | None,
) -> EvalLoopOutput:
    """Trainer's own loop over padded batches; keeps logits only where a metric wants them.

    The loss is the user's own where they brought one, else ours: weighted by tokens.
    """
    refuse_with_own_loss(trainer, loader.dataset)
    if loss_only is None:
        _tell_cost(trainer, loader.dataset)
    size = _rows_at_once(trainer, loader.dataset) if loss_only is None else trainer.args.eval_batch_size

    def loop() -> EvalLoopOutput:
        return trainer.evaluation_loop(
            loader if size == trainer.args.eval_batch_size else _loader(trainer, loader.dataset, size),
            description=description,
            prediction_loss_only=loss_only,
            ignore_keys=ignore_keys,
            metric_key_prefix=prefix,
        )

    def less() -> str | None:
        nonlocal size
        assert trainer.recovery is not None
        if trainer.args.batch_eval_metrics:
            return None  # the user's metric has counted batches that would come again
        remedy = trainer.recovery.try_again()
        if remedy is None and size > 1:
            size //= 2
            return f"{size} rows at once in evaluations with logits"
        return remedy

    with engine_for(trainer.session, longest_tokens=lambda: longest_document(loader.dataset), trains=False) as engine:
        assert trainer.recovery is not None
        with autocast(engine.device, engine.compute_dtype), _kept_in_its_dtype(trainer):
            output = trainer.recovery.retry(f"the evaluation of {prefix} data", loop, less, advice=_LOGITS_ADVICE)
        output.metrics.pop(f"{prefix}_model_preparation_time", None)  # nothing is prepared here
        if not trainer.uses_padded_batches:
            found = _measure(trainer, loader.dataset, prefix)
            output.metrics[f"{prefix}_loss"] = found.loss
            output.metrics.update(_token_metrics(found, prefix))
    return output


def _rows_at_once(trainer: SessionTrainer, dataset: Any) -> int:
    """Of an evaluation with logits: as many as was asked for, or as half of the free memory has room for.

    Where rows are not ours to choose (a loss or metric of the user's own that knows batches), as was asked for.
    """
    asked: int = trainer.args.eval_batch_size
    longest = longest_document(dataset) or trainer.args.max_length
    if trainer.uses_padded_batches or trainer.args.batch_eval_metrics or not longest:
        return asked
    row_bytes = _LOGITS_COPIES * 4 * longest * trainer.model.config.get_text_config().vocab_size
    free = available_bytes(next(trainer.model.parameters()).device)
    size = max(1, min(asked, free // 2 // row_bytes))
    if size < asked:
        trainer.say(
            f"{size} rows at once in place of {asked} in evaluations with logits: one of {longest:,} "
            f"tokens needs {amount(row_bytes, 1)}."
        )
    return size


@contextmanager
def _kept_in_its_dtype(trainer: SessionTrainer) -> Iterator[None]:
    """`evaluation_loop` would cast the model in place where `*_full_eval` is set; here autocast does their work."""
    args = trainer.args
    held = args.bf16_full_eval, args.fp16_full_eval
    args.bf16_full_eval = args.fp16_full_eval = False
    try:
        yield
    finally:
        args.bf16_full_eval, args.fp16_full_eval = held
