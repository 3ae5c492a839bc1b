"""Which of Trainer's methods a subclass may override: deny by default.

transformers' Trainer is a set of methods that call each other; Sartor calls some of them and replaces the rest.  An
override that is never called would be silently ignored, so it is an error that names it and says what to do.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer

from sartor.errors import OverrideError

HONOURED = frozenset(
    {
        "__init__",
        "add_callback",
        "compute_loss",
        "create_model_card",
        "create_optimizer",
        "create_scheduler",
        "evaluate",
        "get_decay_parameter_names",
        "get_optimizer_cls_and_kwargs",
        "init_hf_repo",
        "is_local_process_zero",
        "is_world_process_zero",
        "log",
        "pop_callback",
        "predict",
        "push_to_hub",
        "remove_callback",
        "save_model",
        "train",
    }
)
"""Methods that Sartor calls, so that a subclass's own are used."""

INSTEAD = {
    "training_step": "override compute_loss, or use callbacks: on_step_begin, on_substep_end, on_step_end",
    "get_train_dataloader": "pass the rows as train_dataset, prepared with dataset.map; for an own collation pass "
    "data_collator",
    "get_eval_dataloader": "pass the rows as eval_dataset",
    "get_test_dataloader": "pass the rows to predict()",
    "prediction_step": "pass compute_metrics and preprocess_logits_for_metrics, or override evaluate",
    "evaluation_loop": "override evaluate, or pass compute_metrics",
    "create_optimizer_and_scheduler": "override create_optimizer and create_scheduler: nothing calls this one",
    "_get_train_sampler": "set train_sampling_strategy, or order the rows yourself and set it to 'sequential'",
    "_prepare_dataset": "prepare the rows with dataset.map, or pass formatting_func",
    "get_batch_samples": "pass data_collator, or override compute_loss",
    "autocast_smart_context_manager": "set bf16 or fp16; strict_precision=True forces them",
    "compute_loss_context_manager": "set bf16 or fp16; strict_precision=True forces them",
    "hyperparameter_search": "run one SFTTrainer per trial",
    "_save_checkpoint": "use the callback on_save, or override save_model",
    "_save": "override save_model",
    "_maybe_log_save_evaluate": "override log, evaluate or save_model, or use callbacks",
    "_inner_training_loop": "use callbacks, or override train as a whole",
}
"""What to do in place of an override that is refused."""


def refuse_overrides(trainer: Any, reference: type) -> None:
    """Compare a trainer's class, and what was assigned to the instance, with `reference`, SFTTrainer itself.

    Raises:
        OverrideError: naming every method that is overridden and would not be called.
    """
    problems = []
    for name in sorted(set(vars(Trainer)) | set(INSTEAD)):
        if name in HONOURED or (name.startswith("__") and name.endswith("__")):
            continue
        if name in vars(Trainer) and not callable(getattr(Trainer, name)):
            continue
        overridden = inspect.getattr_static(type(trainer), name, None) is not inspect.getattr_static(
            reference, name, None
        )
        if overridden or name in vars(trainer):
            problems.append(f"{name} (instead: {INSTEAD[name]})" if name in INSTEAD else name)
    if problems:
        raise OverrideError(
            f"{type(trainer).__name__} overrides what Sartor's own loop does not call: {'; '.join(problems)}. "
            f"What may be overridden: {', '.join(sorted(HONOURED - {'__init__'}))}; everything else through callbacks."
        )


def overrides_loss(trainer: Any, reference: type) -> bool:
    """Whether a subclass, or the instance, brings its own `compute_loss`."""
    own = inspect.getattr_static(type(trainer), "compute_loss") is not inspect.getattr_static(reference, "compute_loss")
    return own or "compute_loss" in vars(trainer)
