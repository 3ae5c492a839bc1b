"""What is wrong with a configuration, field by field and between fields, as sentences; nothing is raised here.

Every function takes a configuration, constructed or still being so, and returns problems as `{field: sentence}`: a
sentence names the option and its value, the reason, and what to do.
"""

import difflib
import importlib.util
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from sartor.config.table import OPTIONS, Status
from sartor.masking import masked
from sartor.optim import registry

CHOICES: dict[str, tuple[str, ...]] = {
    "truncation_mode": ("keep_start", "keep_end"),
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "on_full_disk": ("stop", "continue"),
    "bad_rows": ("error", "skip"),
    "mix_until": ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement"),
    "target_start": ("proven", "variant", "partial"),
    "no_targets": ("drop", "error"),
    "on_non_finite": ("stop", "skip"),
    "recomputed_operations": ("all", "cheap"),
    "optimizer_implementation": registry.IMPLEMENTATIONS,
    "optimizer_states": ("device", "host"),
    "torch_compile_mode": ("default", "max-autotune-no-cudagraphs"),
    "loss_type": ("nll", "dft"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding"),
    "log_level": ("passive", "detail", "debug", "info", "warning", "error", "critical"),
}
"""Options whose type is str but whose values are few."""

_OPEN = frozenset({"recomputed_operations", "optimizer_implementation", "optimizer_states", "torch_compile_mode"})
"""Of these, those that may be None: the plan chooses, or torch does."""

_MINIMUM: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "total_batch_size": 1,
    "micro_batch_tokens": 1,
    "loss_chunk_rows": 1,
    "sample_steps": 1,
    "sample_max_new_tokens": 1,
    "max_length": 1,
    "dataset_num_proc": 1,
    "eval_accumulation_steps": 1,
    "torch_empty_cache_steps": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "label_smoothing_factor": 0,
    "neftune_noise_alpha": 0,
    "router_aux_loss_coef": 0,
    "warmup_steps": 0,
    "eval_delay": 0,
    "hub_timeout_s": 1,
    "seed": 0,
    "data_seed": 0,
}
_BELOW: dict[str, float] = {"adam_beta1": 1, "adam_beta2": 1, "label_smoothing_factor": 1}
_POSITIVE_INTERVALS = {"logging_strategy": "logging_steps", "save_strategy": "save_steps"}


def refused(args: Any, defaults: Mapping[str, Any]) -> dict[str, str]:
    """Options of the table's refused rows that are set."""
    problems: dict[str, str] = {}
    for name, option in OPTIONS.items():
        if option.status is not Status.REFUSED:
            continue
        value = getattr(args, name)
        if name == "accelerator_config":
            changed = _accelerator_changes(value)
            if changed:
                problems[name] = f"{name}: {', '.join(changed)} cannot be set: {option.remark}"
        elif not (_is_empty(value) or value == defaults[name] or (name == "label_names" and list(value) == ["labels"])):
            problems[name] = f"{name}={_shown(value)} is not supported: {option.remark}"
    return problems


def without_effect(args: Any, defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each option that is set and changes nothing."""
    derived = {
        # transformers derives these two from other options.
        "do_eval": str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no",
        "dataloader_pin_memory": bool(args.use_cpu),
    }
    lines = []
    for name, option in OPTIONS.items():
        if option.status is not Status.NO_EFFECT or derived.get(name, False):
            continue
        value = getattr(args, name)
        if value != defaults[name] and not (name == "pad_to_multiple_of" and value is None):
            lines.append(f"{name}={_shown(value)} has no effect: {option.remark}")
    return tuple(lines)


def wrong_types(args: Any, hints: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Values that are no bool, int or float where the field is one; `hints` are the class's resolved annotations."""
    problems: dict[str, str] = {}
    for name in defaults:
        kinds, optional = _plain_kinds(hints[name])
        value = getattr(args, name)
        if not kinds or (value is None and optional):
            continue
        kind = kinds[0]
        if not _is_a(value, kind):
            expected = {bool: "True or False", int: "a whole number", float: "a number"}[kind] + (
                " or None" if optional else ""
            )
            problems[name] = f"{name}={value!r} is a {type(value).__name__}: it must be {expected}"
    return problems


def out_of_range(args: Any) -> dict[str, str]:
    """Numbers that are too small or too large.  Values of a wrong type are left to `wrong_types`."""
    problems: dict[str, str] = {}
    for name, minimum in _MINIMUM.items():
        value = getattr(args, name)
        if _is_a(value, float) and value < minimum:
            problems[name] = f"{name}={value!r} is too small: it must be at least {minimum:g}"
    for name, limit in _BELOW.items():
        value = getattr(args, name)
        if _is_a(value, float) and value >= limit:
            problems[name] = f"{name}={value!r} is too large: it must be less than {limit:g}"
    for strategy, name in _POSITIVE_INTERVALS.items():
        value = getattr(args, name)
        if _name(getattr(args, strategy)) == "steps" and _is_a(value, float) and value <= 0:
            problems[name] = (
                f"{name}={value!r} is too small: it must be a number of steps, or a share of all between 0 and 1"
            )
    epochs, steps = args.num_train_epochs, args.max_steps
    if _is_a(epochs, float) and _is_a(steps, int) and epochs <= 0 and steps <= 0:
        problems["num_train_epochs"] = (
            f"num_train_epochs={epochs!r} trains nothing: it must be more than 0, or max_steps given"
        )
    return problems


def unknown_names(args: Any, enumerations: Mapping[str, type[Enum]]) -> dict[str, str]:
    """Options with few values that have another one, with the nearest that exists."""
    allowed = {name: tuple(str(member.value) for member in kind) for name, kind in enumerations.items()} | CHOICES
    problems: dict[str, str] = {}
    for name, values in allowed.items():
        value = _name(getattr(args, name))
        if value in values or (value is None and name in _OPEN):
            continue
        near = difflib.get_close_matches(str(value), values, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(values)}"
        problems[name] = f"{name}={value!r} is unknown: {hint}"
    if _name(args.train_sampling_strategy) == "batch_rebalance":
        problems["train_sampling_strategy"] = (
            "train_sampling_strategy='batch_rebalance' is not supported: it balances several processes; use "
            "'group_by_length'"
        )
    return problems


def unusable_optimizer(args: Any) -> dict[str, str]:
    """An optimizer whose package is missing, or that cannot work here."""
    optim = str(_name(args.optim))
    facts = registry.named(optim)
    if facts.refusal:
        return {"optim": f"optim={optim!r} is not supported: {facts.refusal}"}
    package = facts.package
    if package and importlib.util.find_spec(facts.module or package) is None:
        return {
            "optim": f"optim={optim!r} needs the package {package}: pip install {package}, or use 'adamw_torch_fused'"
        }
    return {}


def contradictions(args: Any) -> dict[str, str]:
    """Options that are fine alone and do not fit together."""
    problems: dict[str, str] = {}
    for half, brain in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if getattr(args, half) and getattr(args, brain):
            problems[half] = f"{half}=True and {brain}=True are both given: choose one"
    if args.strict_precision and not (args.fp16 or args.bf16):
        problems["strict_precision"] = (
            "strict_precision=True needs bf16=True or fp16=True: it says that they must be used"
        )
    if args.max_length is None and (args.packing or args.eval_packing):
        which = "packing" if args.packing else "eval_packing"
        problems["packing"] = f"{which}=True needs max_length, the length of a block: set max_length"
    if _name(args.loss_type) == "dft" and args.label_smoothing_factor:
        problems["label_smoothing_factor"] = (
            f"label_smoothing_factor={args.label_smoothing_factor!r} cannot be used with loss_type='dft', which "
            "weights each target by its own probability: set one of them only"
        )
    for name, changed in (
        ("unroll", args.unroll),
        ("append_eot", args.append_eot),
        ("target_start", args.target_start != "proven"),
    ):
        if changed and not (
            args.assistant_only_loss or (name == "target_start" and args.completion_only_loss is not False)
        ):
            problems[name] = (
                f"{name}={_shown(getattr(args, name))} says how answers are trained: set assistant_only_loss=True with "
                "it"
            )
    if args.unroll and args.completion_only_loss is False:
        problems["unroll"] = (
            "unroll=True trains the last answer of each row, so completion_only_loss=False cannot apply: leave one out"
        )
    problems |= _plan_contradictions(args)
    # Both names hold the same value once a configuration is constructed.
    unknown = sorted(set(_mapping(args.gradient_checkpointing_kwargs)) - {"use_reentrant"})
    if unknown:
        problems["gradient_checkpointing_kwargs"] = (
            f"gradient_checkpointing_kwargs: {', '.join(unknown)} cannot be set: leave it out; what is recomputed is "
            "said by recomputed_operations"
        )
    unknown = sorted(set(_mapping(args.dataset_kwargs)) - {"skip_prepare_dataset"})
    if unknown:
        problems["dataset_kwargs"] = (
            f"dataset_kwargs: {', '.join(unknown)} is unknown: the only key is skip_prepare_dataset"
        )
    prompts = args.sample_prompts
    if prompts is not None and (isinstance(prompts, str) or not all(isinstance(one, str) and one for one in prompts)):
        problems["sample_prompts"] = f"sample_prompts={_shown(prompts)} must be a list of texts"
    unknown = sorted({str(name) for name in args.include_for_metrics or ()} - {"inputs", "loss"})
    if unknown:
        problems["include_for_metrics"] = (
            f"include_for_metrics: {', '.join(unknown)} is unknown: choose from inputs and loss"
        )
    return problems | _mapping_problems(args.map)


def _plan_contradictions(args: Any) -> dict[str, str]:
    """What is asked of the plan and cannot be."""
    problems: dict[str, str] = {}
    if args.recomputed_operations is not None and args.gradient_checkpointing is False:
        problems["recomputed_operations"] = (
            f"recomputed_operations={args.recomputed_operations!r} and gradient_checkpointing=False contradict each "
            "other: leave one of them out"
        )
    if args.torch_compile and args.recomputed_operations == "cheap":
        problems["recomputed_operations"] = (
            "recomputed_operations='cheap' and torch_compile=True do not go together: compiled layers keep and compute "
            "again what torch.compile decides; leave one of them out"
        )
    optim = str(_name(args.optim))
    for name in ("optimizer_implementation", "optimizer_states"):
        value = getattr(args, name)
        if value not in (None, "device") and optim not in registry.TORCH_NAMES:
            problems[name] = (
                f"{name}={value!r} is for torch's own optimizers ({', '.join(registry.TORCH_NAMES)}), and "
                f"optim={optim!r} is none: leave it out"
            )
    if args.stochastic_rounding:
        problems |= _rounding_contradictions(args, optim)
    facts = registry.named(optim)
    if args.optimizer_implementation == "fused" and facts.constructor is not None and not facts.fused_on:
        problems.setdefault(
            "optimizer_implementation",
            f"optimizer_implementation='fused': torch has no fused {facts.constructor().__name__}; use 'foreach' or "
            "'for-loop'",
        )
    return problems


def _rounding_contradictions(args: Any, optim: str) -> dict[str, str]:
    """What training in bfloat16 does not go together with."""
    name = "stochastic_rounding"
    if args.fp16 or args.bf16 is False:
        return {
            name: f"{name}=True trains in bfloat16, and {'fp16=True' if args.fp16 else 'bf16=False'} asks for another "
            "dtype: set bf16=True, or leave it out"
        }
    if optim not in registry.TORCH_NAMES:
        return {
            name: f"{name}=True takes an update in pieces, as torch's own optimizers can "
            f"({', '.join(registry.TORCH_NAMES)}), and optim={optim!r} is none: choose one of them, or leave it out"
        }
    return {}


def parse_mapping(entries: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """`["user={question}"]` to `(("user", "{question}"),)`; entries must have passed `contradictions`."""
    pairs = (entry.partition("=") for entry in entries or ())
    return tuple((role.strip(), template) for role, _, template in pairs)


def _mapping_problems(entries: Sequence[str] | None) -> dict[str, str]:
    if isinstance(entries, str) or any(not isinstance(entry, str) for entry in entries or ()):
        return {"map": f"map={entries!r} must be a list of texts such as 'user={{question}}'"}
    for entry in entries or ():
        role, equals, template = entry.partition("=")
        if not equals or not template:
            return {"map": f"map: {entry!r} has no template: write role=template, such as 'user={{question}}'"}
        if role.strip() not in ("system", "user", "assistant"):
            return {
                "map": f"map: the role {role.strip()!r} in {entry!r} is unknown: it must be system, user or assistant"
            }
    return {}


def _accelerator_changes(value: Any) -> list[str]:
    """The keys of accelerate's settings that are not at their defaults."""
    from transformers.trainer_pt_utils import AcceleratorConfig

    if value is None:
        return []
    if isinstance(value, str) and not value.startswith("{"):
        return [f"the file {value}"]
    if not isinstance(value, dict | AcceleratorConfig | str):
        return [f"a {type(value).__name__}"]
    given = value.to_dict() if isinstance(value, AcceleratorConfig) else _mapping(value)
    usual = AcceleratorConfig().to_dict()
    return sorted(key for key, content in given.items() if content != usual.get(key, object()))


def _mapping(value: Any) -> dict[str, Any]:
    """A dict option, which may still be the JSON text of a command line."""
    if isinstance(value, str):
        import json

        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return {value: None}
    return dict(value or {})


def kinds_of(hint: Any) -> tuple[list[Any], bool]:
    """(the types that an annotation permits, whether None is one more): of `int | None`, `([int], True)`."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = typing.get_args(hint) if union else (hint,)
    return [part for part in parts if part is not types.NoneType], types.NoneType in parts


def _plain_kinds(hint: Any) -> tuple[list[type], bool]:
    """([bool] or [int] or [float] or [], whether None is allowed): other types are not checked here."""
    kinds, optional = kinds_of(hint)
    if len(kinds) != 1 or kinds[0] not in (bool, int, float):
        return [], True
    return kinds, optional


def _is_a(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _name(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _shown(value: Any) -> str:
    text = repr(masked(_name(value)))  # before it is cut, which may leave half of a secret
    return text if len(text) <= 60 else text[:57] + "..."
