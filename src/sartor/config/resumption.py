"""Which options may differ when a run is resumed: those that change what is recorded, not what is learned.

Every option that is neither listed here nor in a group of options that record (logging, say) counts as part of the
mathematics, also one that is added later: a difference in it is an error that names it, until the user accepts it.
"""

from collections.abc import Mapping
from typing import Any

from sartor.config.table import OPTIONS, Status
from sartor.config.texts import GROUPS
from sartor.masking import same_but_for_secrets
from sartor.records import PLAN_CHOICES

EVALUATION_TIMES = frozenset({"eval_strategy", "eval_steps", "eval_delay"})
"""When to evaluate: part of the mathematics only where the schedule follows a metric."""

RECORDS_ONLY = (
    frozenset(name for group in ("evaluation", "logging", "saving", "Hub") for name in GROUPS[group])
    | {"eval_packing", "data_cache", "dataset_num_proc", "torch_empty_cache_steps"}
    | {"remove_unused_columns", "trust_remote_code", "use_cache", "use_cpu"}
) - EVALUATION_TIMES
"""What is logged, saved, evaluated and shown.  `use_cpu` chooses a device, which is compared by itself."""

MEMORY = (
    frozenset(PLAN_CHOICES)
    | {"gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs", "rehearse"}
    | {"torch_compile", "torch_compile_backend", "torch_compile_mode"}
)
"""What the plan decides: a resumed run keeps the plan of its checkpoint, whatever these say."""

_METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")

OPTIMIZER = frozenset({*GROUPS["optimizer"], "max_steps", "num_train_epochs"} - {"optim", "max_grad_norm"})
"""Options that an optimizer and a schedule are made with.

An accepted change of one makes both anew around the old state.
"""


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that are part of the mathematics and differ: {name: (value in the checkpoint, value now)}.

    Secrets in them are masked, and no difference.

    Args:
        before: `resolved_configuration` of the run that wrote the checkpoint.
        now: that of this run.
    """
    free = RECORDS_ONLY | MEMORY
    if str(now.get("lr_scheduler_type")) not in _METRIC_SCHEDULES:
        free |= EVALUATION_TIMES
    if before.get("max_steps", -1) > 0 and now.get("max_steps", -1) > 0:  # which overrule epochs
        free |= {"num_train_epochs"}
    return {
        name: (before.get(name), value)
        for name, value in now.items()
        if name not in free
        and name in OPTIONS
        and OPTIONS[name].status is Status.HONOURED
        and name in before
        and not same_but_for_secrets(before[name], value)
    }


def changed_memory(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Memory options that were given another value than in the run that wrote the checkpoint."""
    return tuple(sorted(name for name in MEMORY if name in before and before[name] != now.get(name)))
