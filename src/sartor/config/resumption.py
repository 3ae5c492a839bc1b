"""Which options may differ when a run is resumed: those that change what is recorded, not what is learned.

Every option that is neither listed here nor in a group of options that record (logging, say) counts as part of the
mathematics, also one that is added later: a difference in it is an error that names it, until the user accepts it.
"""

from collections.abc import Mapping
from typing import Any

from sartor.config.table import OPTIONS, Status
from sartor.config.texts import GROUPS
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


def mathematics_of(configuration: Mapping[str, Any]) -> frozenset[str]:
    """Options that are part of the mathematics of a run, which has `resolved_configuration`."""
    free = RECORDS_ONLY | MEMORY
    if str(configuration.get("lr_scheduler_type")) not in _METRIC_SCHEDULES:
        free |= EVALUATION_TIMES
    return frozenset(name for name, option in OPTIONS.items() if option.status is Status.HONOURED) - free
