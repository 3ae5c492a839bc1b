"""Whether the state of a run is one that a run could have: every type, shape, dtype and count, before any is used.

In: what `checkpoint.read_state` read, whose checksums are right whoever computed them.  Out: nothing, or the error
that names the place.  What it keeps true: what passes can be loaded by torch, numpy and Python without an error of
theirs; they take sizes and counts as they come, and a wrong one ends the process.
"""

from __future__ import annotations

import copy
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch

from sartor.device import ACCELERATORS
from sartor.optim.registry import IMPLEMENTATIONS, facts_of
from sartor.records import Layout
from sartor.run.plain_files import DamagedError

Check = Callable[[Any, str], None]
"""Of a value and its place; raises DamagedError."""

MOST = 1 << 53
"""No count is larger: from there on a float does not hold every whole number."""
MOST_THREADS = 1024


def refuse(place: str, value: Any, wanted: str) -> DamagedError:
    """The error of a value that cannot be right."""
    if isinstance(value, torch.Tensor | np.ndarray):
        shown = f"an array of {value.dtype} and shape {tuple(value.shape)}"
    elif isinstance(value, list | tuple | dict):
        shown = f"a {type(value).__name__} of {len(value)}"
    else:
        shown = repr(value)[:80] if not isinstance(value, int) or abs(value) < MOST else "a number of many digits"
    return DamagedError(f"{place or '/'} is {shown}, and should be {wanted}")


# --- plain values --------------------------------------------------------------------------------------------------


def whole(least: int = 0, most: int = MOST) -> Check:
    """A whole number."""

    def check(value: Any, place: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise refuse(place, value, f"a whole number from {least:,} to {most:,}")

    return check


def number(value: Any, place: str) -> None:
    """A number; it may be infinite, or none (nan)."""
    if type(value) is not float and not (type(value) is int and abs(value) < 1 << 63):
        raise refuse(place, value, "a number")


def text(value: Any, place: str) -> None:
    """A text."""
    if type(value) is not str:
        raise refuse(place, value, "a text")


def flag(value: Any, place: str) -> None:
    """True or False."""
    if type(value) is not bool:
        raise refuse(place, value, "true or false")


def anything(value: Any, place: str) -> None:
    """Whatever it is: it is compared, or shown."""


def one_of(*values: Any) -> Check:
    """One of a few."""

    def check(value: Any, place: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            raise refuse(place, value, f"one of {', '.join(map(repr, values))}")

    return check


def optional(inner: Check) -> Check:
    """That, or nothing."""
    return lambda value, place: None if value is None else inner(value, place)


def list_of(inner: Check) -> Check:
    """A list, or tuple."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list | tuple):
            raise refuse(place, value, "a list")
        for index, part in enumerate(value):
            inner(part, f"{place}/{index}")

    return check


def mapping_of(inner: Check) -> Check:
    """Values by names."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict) or not all(type(key) is str for key in value):
            raise refuse(place, value, "an object")
        for key, part in value.items():
            inner(part, f"{place}/{key}")

    return check


def fields(wanted: Mapping[str, Check], *, may_lack: Collection[str] = (), is_open: bool = False) -> Check:
    """An object with these keys.

    Args:
        wanted: what each of them holds.
        may_lack: keys that may be missing.
        is_open: more keys may be there; nobody reads them.
    """

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise refuse(place, value, "an object")
        for key, inner in wanted.items():
            if key in value:
                inner(value[key], f"{place}/{key}")
            elif key not in may_lack:
                raise DamagedError(f"{place}/{key} is missing")
        more = [] if is_open else [key for key in value if key not in wanted]
        if more:
            raise DamagedError(f"{place}/{more[0]} is nothing that belongs there")

    return check


def tensor(value: Any, place: str) -> None:
    """A tensor of whatever shape."""
    if not isinstance(value, torch.Tensor):
        raise refuse(place, value, "a tensor")


def floating(value: Any, place: str) -> None:
    """A tensor of floating numbers."""
    tensor(value, place)
    if not value.is_floating_point():
        raise refuse(place, value, "a tensor of floating numbers")


def scalar(value: Any, place: str) -> None:
    """A tensor of one number."""
    floating(value, place)
    if value.dim():
        raise refuse(place, value, "a tensor of one number")


# --- generators ----------------------------------------------------------------------------------------------------


def generators(value: Any, place: str) -> None:
    """What `state.generator_states` returns."""
    known = {"python": _python, "numpy": _numpy, "torch": _torch, **dict.fromkeys(ACCELERATORS, list_of(_cuda))}
    fields(known, may_lack=ACCELERATORS)(value, place)


_MERSENNE = 624
"""Words of a Mersenne twister."""


def _python(value: Any, place: str) -> None:
    wanted = "the state of Python's generator"
    if not isinstance(value, tuple) or len(value) != 3 or value[0] != 3:
        raise refuse(place, value, wanted)
    words, spare = value[1:]
    if not isinstance(words, tuple) or len(words) != _MERSENNE + 1:
        raise refuse(place, words, f"{_MERSENNE + 1} words of it")
    for word in words[:-1]:
        whole(0, (1 << 32) - 1)(word, place)
    whole(0, _MERSENNE)(words[-1], place)
    optional(number)(spare, place)


def _numpy(value: Any, place: str) -> None:
    name = np.random.get_state(legacy=False)["bit_generator"]
    if name != "MT19937":  # somebody has replaced the global one
        like(value, np.random.get_state(legacy=False), place)
        return

    def words(key: Any, where: str) -> None:
        if not isinstance(key, np.ndarray) or key.dtype != np.uint32 or key.shape != (_MERSENNE,):
            raise refuse(where, key, f"{_MERSENNE} words of 32 bits")

    state = fields({"key": words, "pos": whole(0, _MERSENNE)})  # numpy reads wherever a position says
    fields({"bit_generator": one_of(name), "state": state, "has_gauss": whole(0, 1), "gauss": number})(value, place)


def _torch(value: Any, place: str) -> None:
    now = torch.get_rng_state()
    if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8 or value.shape != now.shape:
        raise refuse(place, value, f"a tensor of torch.uint8 and shape {tuple(now.shape)}")
    # at::CPUGeneratorImplStateLegacy: a seed, how many words are left, whether it is seeded, the next word
    content = value.numpy().tobytes()
    left, is_seeded = np.frombuffer(content[8:16], np.int32)
    following = int(np.frombuffer(content[16:24], np.uint64)[0])
    if is_seeded != 1 or not 1 <= left <= _MERSENNE or not 0 <= following <= _MERSENNE + 1 - left:
        raise DamagedError(f"{place} is no state of torch's generator")


_CUDA_BYTES = 16
"""A seed and an offset, of 8 bytes each."""


def _cuda(value: Any, place: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8 or value.shape != (_CUDA_BYTES,):
        raise refuse(place, value, f"a tensor of torch.uint8 and shape ({_CUDA_BYTES},)")
    offset = int(np.frombuffer(value.numpy().tobytes()[8:], np.int64)[0])
    if offset < 0 or offset % 4:
        raise DamagedError(f"{place} is no state of a GPU's generator")


# --- what a run wrote ----------------------------------------------------------------------------------------------

_PLAN: dict[str, Check] = {
    "layout": one_of(*map(str, Layout)),
    "micro_batch_tokens": whole(1),
    "gradient_checkpointing": flag,
    "loss_chunk_rows": whole(1),
    "attention": text,
    "parameter_dtype": text,
    "compute_dtype": one_of("float32", "bfloat16", "float16", "float64"),
    "num_threads": whole(1, MOST_THREADS),
    "device": text,
    "evaluation_tokens": optional(whole(1)),
    "per_device_train_batch_size": optional(whole(1)),
    "gradient_accumulation_steps": optional(whole(1)),
    "recomputed_layers": optional(whole()),
    "recomputes_cheap": flag,
    "optimizer_implementation": one_of(None, *IMPLEMENTATIONS),
    "optimizer_states": one_of("device", "host"),
    "stochastic_rounding": flag,
    "predicted_bytes": mapping_of(number),
    "measured_bytes": optional(number),
    "pass_bytes": optional(whole()),
    "pass_tokens": optional(whole()),
    "forecast": mapping_of(anything),
    "compile_backend": optional(text),
    "compile_mode": optional(text),
    "incidents": list_of(text),
    "reasons": mapping_of(text),
}
_SUMS = dict.fromkeys(("loss_sum", "entropy_sum", "num_correct"), scalar)
_WINDOW = fields({**_SUMS, "num_targets": whole(), "weight_sum": optional(scalar)})
_SCALER = {
    **dict.fromkeys(("scale", "growth_factor", "backoff_factor"), number),
    **dict.fromkeys(("growth_interval", "_growth_tracker"), whole()),
}
_CONTROL = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
_CONTENT: dict[str, Check] = {
    "parameters": mapping_of(floating),
    "saved_parameters": list_of(text),
    "buffers": mapping_of(tensor),
    "optimizer": fields({"state": anything, "param_groups": anything}, is_open=True),
    "optimizer_class": text,
    "schedule": mapping_of(anything),
    "updater": fields({"scaler": optional(fields(_SCALER))}, is_open=True),
    "steps": fields({"done": whole(), "num_skipped": whole()}),
    "cursor": fields(
        {
            "epoch": whole(0, sys.maxsize),
            "device_batches": whole(),
            "optimizer_batches": whole(),
            "stream": text,
            "is_over": flag,
        },
        may_lack=("is_over",),
        is_open=True,
    ),
    "generators": generators,
    "control": fields(dict.fromkeys(_CONTROL, flag), is_open=True),
    "train_loop": fields(
        {
            "window": fields({"loss": number, "num_skipped": whole(), "sums": optional(_WINDOW)}, is_open=True),
            "last_logged": whole(),
            "spikes": fields({"losses": list_of(number), "count": whole()}),
            "total_loss": number,
            "grad_norm": optional(number),
            "learning_rate": optional(number),
            "evaluated_last": flag,
            "seconds": number,
        },
        is_open=True,
    ),
    "num_tokens": whole(),
    "metrics_writer": fields({"tokens": number, "flops": number, "seconds": number}, is_open=True),
    "metrics_bytes": whole(),
    "plan": fields(_PLAN, may_lack=tuple(_PLAN)[9:]),
    "fingerprints": mapping_of(text),
    "frozen": mapping_of(text),
    "settings": fields({"max_steps": number}, may_lack=("max_steps",), is_open=True),
    "versions": mapping_of(text),
}
"""What `Checkpoints` saves."""
_TRAINER_STATE: dict[str, Check] = {
    **dict.fromkeys(("epoch", "total_flos", "logging_steps", "eval_steps", "save_steps"), number),
    **dict.fromkeys(("global_step", "num_input_tokens_seen"), whole()),
    **dict.fromkeys(("max_steps", "num_train_epochs"), whole(0, sys.maxsize)),  # a stream's epochs have no end
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), flag),
    "train_batch_size": optional(whole()),
    "log_history": list_of(mapping_of(anything)),
    "best_metric": optional(number),
    "best_global_step": optional(whole()),
    "best_model_checkpoint": optional(text),
    "trial_name": optional(text),
    "trial_params": anything,
    "stateful_callbacks": mapping_of(anything),
}
"""transformers' `TrainerState`, as it writes it."""


def check_content(content: Mapping[str, Any]) -> None:
    """See that this can be the state of a run.

    Raises:
        DamagedError: it cannot; names the key.
    """
    fields(_CONTENT, is_open=True)(content, "")


def check_trainer_state(state: Mapping[str, Any], known: Collection[str], num_steps: int) -> None:
    """See that this can be what transformers wrote beside it.

    Args:
        state: of `trainer_state.json`.
        known: the fields that this version of transformers has.
        num_steps: that the run has taken.

    Raises:
        DamagedError: it cannot; names the key.
    """
    checks = {name: _TRAINER_STATE.get(name, anything) for name in known}
    fields(checks, may_lack=[name for name in known if name not in ("global_step", "log_history")])(state, "")
    if state["global_step"] != num_steps:
        raise refuse("/global_step", state["global_step"], f"{num_steps}, as run_state/state.json counts")
    one_callback = fields({"args": anything, "attributes": mapping_of(anything)}, may_lack=("args", "attributes"))
    for name, found in state.get("stateful_callbacks", {}).items():
        for part in found if isinstance(found, list) else [found]:
            one_callback(part, f"/stateful_callbacks/{name}")


# --- optimizer and schedule ----------------------------------------------------------------------------------------


def check_tensors(saved: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], place: str) -> None:
    """See that tensors by name have the shapes of those that they are copied into.

    Raises:
        DamagedError: one has not; names it.
    """
    for name, value in saved.items():
        if name in present:
            _same_shape(value, present[name], f"{place}/{name}")


def like(saved: Any, present: Any, place: str, *, owner: type | None = None) -> None:
    """See that a saved value is of the kind of the one that it takes the place of.

    Args:
        saved: from a checkpoint.
        present: of what was made anew; None: it may be anything plain.
        place: for the message.
        owner: whose attributes both are: attributes that were made later may be among the saved ones.

    Raises:
        DamagedError: it is not; names it.
    """
    if isinstance(present, torch.Tensor):
        _same_shape(saved, present, place)
    elif present is None or isinstance(present, bool):
        if not (saved is None or type(saved) in ((bool,) if present is not None else (bool, int, float, str))):
            raise refuse(place, saved, "a plain value" if present is None else "true or false")
    elif isinstance(present, int | float):
        number(saved, place)
        if math.isfinite(present) and not math.isfinite(saved):
            raise refuse(place, saved, "a finite number")
    elif isinstance(present, str):
        one_of(present)(saved, place)
    elif isinstance(present, list | tuple):
        if type(saved) is not type(present) or (present and len(saved) != len(present)):
            raise refuse(place, saved, f"a {type(present).__name__} of {len(present)}")
        for index, part in enumerate(saved):
            like(part, present[index] if present else None, f"{place}/{index}")
    elif isinstance(present, dict):
        _like_dict(saved, present, place, owner)


def _like_dict(saved: Any, present: Mapping[Any, Any], place: str, owner: type | None) -> None:
    if not isinstance(saved, dict):
        raise refuse(place, saved, "an object")
    for key, value in present.items():
        if key not in saved:
            raise DamagedError(f"{place}/{key} is missing")
        like(saved[key], value, f"{place}/{key}")
    for key, value in saved.items():
        if key not in present:
            if owner is None or not isinstance(key, str) or hasattr(owner, key) or key == "optimizer":
                raise DamagedError(f"{place}/{key} is nothing that belongs there")
            like(value, None, f"{place}/{key}")


def _same_shape(value: Any, present: torch.Tensor, place: str) -> None:
    is_right = isinstance(value, torch.Tensor) and value.shape == present.shape
    if not is_right or not (value.dtype == present.dtype or value.is_floating_point() == present.is_floating_point()):
        kind = "floating numbers" if present.is_floating_point() else str(present.dtype)
        raise refuse(place, value, f"a tensor of {kind} and shape {tuple(present.shape)}")


def check_schedule(saved: Mapping[str, Any], scheduler: Any) -> None:
    """See that this can be the state of a schedule.

    Args:
        saved: the state.
        scheduler: the one that was made, which is like it; None: another one, which takes the counts alone.

    Raises:
        DamagedError: it cannot; names the key.
    """
    if scheduler is not None:
        like(saved, scheduler.state_dict(), "/schedule", owner=type(scheduler))
    for name in ("last_epoch", "_step_count"):
        if name in saved:
            whole()(saved[name], f"/schedule/{name}")


def check_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, *, any_options: bool = False) -> None:
    """See that this can be the state of an optimizer like the one that was made.

    Of torch's own and transformers' the states are known: a step on tensors without content makes them.  Of others
    only what can be said of any optimizer is looked at.

    Args:
        saved: the state.
        optimizer: the one that was made.
        any_options: those of the saved groups are not used.

    Raises:
        DamagedError: it cannot; names the key.
    """
    state, groups = saved["state"], saved["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    present = optimizer.state_dict()["param_groups"]
    list_of(fields({"params": list_of(whole())}, is_open=True))(groups, "/optimizer/param_groups")
    numbers = [number for group in present for number in group["params"]]
    if [number for group in groups for number in group["params"]] != numbers:
        raise DamagedError("/optimizer/param_groups lists other parameters than the optimizer has")
    if not any_options:
        like(groups, present, "/optimizer/param_groups")
    if not isinstance(state, dict):
        raise refuse("/optimizer/state", state, "an object")
    expected = _expected_states(optimizer, parameters)
    known = dict(zip(numbers, parameters, strict=True))
    for key, entry in state.items():
        place = f"/optimizer/state/{key}"
        if key not in known:
            raise DamagedError(f"{place} is of a parameter that the optimizer does not have")
        if not isinstance(entry, dict):
            raise refuse(place, entry, "an object")
        if entry and expected is not None:
            like(entry, expected[numbers.index(key)], place)
        for name, value in entry.items():
            _check_count(value, f"{place}/{name}", least=0 if name == "step" else -math.inf)


def _check_count(value: Any, place: str, least: float) -> None:
    """Numbers of a state, which a step computes with: finite, and counts not negative."""
    one = value.item() if isinstance(value, torch.Tensor) and not value.dim() else value
    if type(one) in (int, float) and not (one == one and least <= one <= MOST and one >= -MOST):
        raise refuse(place, one, "a count" if least == 0 else "a finite number")


def _expected_states(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
) -> list[dict[str, Any]] | None:
    """The states of each parameter after a first step; None: they are not known."""
    if all(optimizer.state.get(parameter) for parameter in parameters):  # made with the optimizer
        return [dict(optimizer.state[parameter]) for parameter in parameters]
    if facts_of(optimizer) is None:
        return None  # a step of the user's own may do more than step
    twin = copy.copy(optimizer)
    hollow = [torch.nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in parameters]
    for parameter in hollow:
        parameter.grad = torch.empty_like(parameter)
    rest = iter(hollow)
    plain = {"fused": False, "foreach": False, "capturable": False}
    twin.param_groups = [
        {
            **group,
            **{name: value for name, value in plain.items() if name in group},
            "params": [next(rest) for _ in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    twin.state = defaultdict(dict)
    try:
        twin.step()
    except Exception:  # it looks at values, or needs a closure
        return None
    return [dict(twin.state[parameter]) for parameter in hollow]
