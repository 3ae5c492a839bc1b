"""What can be known to be wrong with a trainer's arguments before any row is read or any model loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from sartor.config import SFTConfig
from sartor.engine.compiled import check_compiler
from sartor.errors import ConfigurationError
from sartor.optim import registry

EVALUATION_KEYS = (
    "loss",
    "perplexity",
    "entropy",
    "mean_token_accuracy",
    "num_tokens",
    "runtime",
    "samples_per_second",
    "steps_per_second",
)
"""What an evaluation measures by itself, without its prefix."""


@dataclass(frozen=True, slots=True)
class Given:
    """The trainer's arguments, as far as they can contradict each other or the configuration."""

    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Callable[..., Any] | None
    compute_loss_func: Callable[..., Any] | None
    compute_metrics: Callable[..., Any] | None
    optimizers: tuple[Any, Any]
    optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None
    quantization_config: Any


def problems_of(args: SFTConfig, given: Given) -> list[str]:
    """One sentence per problem, each with what to do."""
    return [
        *_data_problems(args, given),
        *_evaluation_problems(args, given),
        *_model_problems(args, given),
        *_compiler_problems(args, given),
    ]


def _data_problems(args: SFTConfig, given: Given) -> list[str]:
    problems = []
    if given.train_dataset is None:
        problems.append("`train_dataset` is required: pass rows, or the path of a file of them.")
    if _is_stream(given.train_dataset) and args.max_steps <= 0:
        problems.append(
            "train_dataset is an IterableDataset, whose length is not known: set max_steps, the number of optimizer "
            "steps to train."
        )
    if given.data_collator is not None and not callable(given.data_collator):
        problems.append(
            f"data_collator must be a function of a list of rows, not {type(given.data_collator).__name__}."
        )
    if given.data_collator is not None and args.packing and args.packing_strategy != "wrapped":
        problems.append(
            "packing=True and an own data_collator do not go together: the documents of a block would see each other. "
            "Leave one of them out."
        )
    return problems


def _evaluation_problems(args: SFTConfig, given: Given) -> list[str]:
    problems = []
    strategy = IntervalStrategy(args.eval_strategy).value
    if strategy != "no" and given.eval_dataset is None:
        problems.append(f"eval_strategy={strategy!r} needs eval_dataset: pass one, or set eval_strategy='no'.")
    for name in ("eval_on_start", "eval_on_end"):
        if getattr(args, name) and given.eval_dataset is None:
            problems.append(f"{name}=True needs eval_dataset: pass one, or leave {name} out.")
    is_best = SaveStrategy(args.save_strategy) == SaveStrategy.BEST
    if is_best and strategy == "no":
        problems.append("save_strategy='best' needs evaluations: set eval_strategy to 'steps' or 'epoch'.")
    metric = args.metric_for_best_model
    if is_best and metric is None:
        problems.append("save_strategy='best' needs metric_for_best_model: set it, to 'loss' for example.")
    elif metric is not None and given.eval_dataset is not None and given.compute_metrics is None:
        known = evaluation_keys(given.eval_dataset)
        if f"eval_{metric.removeprefix('eval_')}" not in known:
            problems.append(
                f"metric_for_best_model={metric!r} is nothing that an evaluation measures: choose one of "
                f"{', '.join(known)}, or pass compute_metrics."
            )
    if args.batch_eval_metrics and given.compute_metrics is not None:
        if "compute_result" not in inspect.signature(given.compute_metrics).parameters:
            problems.append(
                "batch_eval_metrics=True needs a compute_metrics with a parameter compute_result, which is True at the "
                "last batch."
            )
        if args.packing if args.eval_packing is None else args.eval_packing:
            problems.append("batch_eval_metrics=True needs whole rows: set eval_packing=False.")
    return problems


def _model_problems(args: SFTConfig, given: Given) -> list[str]:
    problems = []
    if given.optimizer_cls_and_kwargs is not None and given.optimizers[0] is not None:
        problems.append("optimizers and optimizer_cls_and_kwargs both name an optimizer: leave one of them out.")
    chosen = given.optimizer_cls_and_kwargs[0] if given.optimizer_cls_and_kwargs else type(given.optimizers[0])
    facts = registry.of_base(chosen) if isinstance(chosen, type) else None
    if facts is not None and facts.refusal:
        problems.append(facts.refusal)
    if given.compute_loss_func is not None and args.loss_type == "dft":
        problems.append("loss_type='dft' and compute_loss_func are two losses: leave one of them out.")
    if not isinstance(given.model, str):
        for name, value in (
            ("quantization_config", given.quantization_config),
            ("model_init_kwargs", args.model_init_kwargs),
        ):
            if value is not None:
                problems.append(f"{name} is for a model given by name, and this one is loaded already: leave it out.")
    return problems


def _compiler_problems(args: SFTConfig, given: Given) -> list[str]:
    if not args.torch_compile:
        return []
    problems = []
    if given.compute_loss_func is not None or given.data_collator is not None:
        problems.append(
            "torch_compile=True compiles layers for Sartor's own step, which an own loss or data_collator takes the "
            "place of: leave torch_compile out."
        )
    try:
        check_compiler(str(args.torch_compile_backend), args.device)
    except ConfigurationError as error:
        problems.append(str(error))
    return problems


def evaluation_keys(eval_dataset: Any) -> tuple[str, ...]:
    """The metrics that evaluations of this set, or of these, return without a `compute_metrics`."""
    prefixes = [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else ["eval_"]
    return tuple(prefix + key for prefix in prefixes for key in EVALUATION_KEYS)


def _is_stream(dataset: Any) -> bool:
    """Whether the rows' number is not known; of a mixture one source is enough."""
    import datasets

    from sartor.data.encoding import mixture
    from sartor.data.reading import sources

    if mixture.is_mixture(dataset):
        return any(_is_stream(part.dataset if isinstance(part, sources.Source) else part[0]) for part in dataset)
    if isinstance(dataset, sources.Source):
        return _is_stream(dataset.dataset)
    return isinstance(dataset, (datasets.IterableDataset, datasets.IterableDatasetDict))
