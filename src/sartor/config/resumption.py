"""Which options may differ when a run is resumed: those that change what is recorded, not what is learned.

Every option that is not listed here counts as part of the mathematics, also one that is added later: a difference in
it is an error that names it, until the user accepts it.
"""

from collections.abc import Mapping
from typing import Any

from sartor.config.table import OPTIONS, Status

RECORDS_ONLY = frozenset(
    [
        "output_dir",
        "run_name",
        "project",
        "report_to",
        "log_level",
        "disable_tqdm",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "skip_memory_metrics",
        "include_num_input_tokens_seen",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "on_full_disk",
        "save_in_background",
        "accept_changes",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "hub_timeout_s",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "per_device_eval_batch_size",
        "prediction_loss_only",
        "eval_on_start",
        "eval_do_concat_batches",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "eval_packing",
        "bf16_full_eval",
        "fp16_full_eval",
        "data_cache",
        "dataset_num_proc",
        "torch_empty_cache_steps",
        "remove_unused_columns",
        "trust_remote_code",
        "use_cache",
        "use_cpu",
        "eval_on_end",
        "sample_prompts",
        "sample_steps",
        "sample_max_new_tokens",
    ]
)
"""What is logged, saved, evaluated and shown.  `use_cpu` chooses a device, which is compared by itself."""

EVALUATION_TIMES = frozenset({"eval_strategy", "eval_steps", "eval_delay"})
"""When to evaluate: part of the mathematics only where the schedule follows a metric."""

MEMORY = frozenset(
    [
        "gradient_checkpointing",
        "activation_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing_kwargs",
        "micro_batch_tokens",
        "rehearse",
        "loss_chunk_rows",
        "recomputed_operations",
        "optimizer_implementation",
        "optimizer_states",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ]
)
"""What the plan decides: a resumed run keeps the plan of its checkpoint, whatever these say."""

_METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")

OPTIMIZER = frozenset(
    [
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim_args",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "max_steps",
        "num_train_epochs",
    ]
)
"""Options that an optimizer and a schedule are made with.

An accepted change of one makes both anew around the old state.
"""


def mathematics_of(configuration: Mapping[str, Any]) -> frozenset[str]:
    """Options that are part of the mathematics of a run, which has `resolved_configuration`."""
    free = RECORDS_ONLY | MEMORY
    if str(configuration.get("lr_scheduler_type")) not in _METRIC_SCHEDULES:
        free |= EVALUATION_TIMES
    return frozenset(name for name, option in OPTIONS.items() if option.status is Status.HONOURED) - free
