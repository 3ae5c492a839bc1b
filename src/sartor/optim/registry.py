"""What is known of each optimizer: one row of facts, which every other room reads.

To add an optimizer is to add its row.

In: a name that `SFTConfig.optim` may have, or an optimizer.  Out: its row, or what follows from it.  What it keeps
true: every name of transformers and every class of `torch.optim` has a row, and what a row says of states and pieces is
what the optimizer does; `tests/optim/test_registry.py` holds that.

Example: "sgd" is `torch.optim.SGD`.  It keeps no array, and one with `momentum`; its step takes each value by itself,
so it can be taken in pieces; torch has a fused kernel of it for CPU and CUDA.

The keys of a state are in no row: a checkpoint's state is compared with the one that a step on tensors without content
makes (`run/checked_state.py`), for every optimizer whose class is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from sartor.device import kind_of
from sartor.errors import ConfigurationError

IMPLEMENTATIONS = ("fused", "foreach", "for-loop")
"""Of the same update, equal up to rounding: one kernel per parameter; one list of kernels for all of them, with
temporaries as large; one parameter after the other."""
STATE_BYTES = 4
"""Of each value of a state: states are in float32, but for 8-bit ones."""
SOME_MODULES_ONLY = (
    "optimizers that act on some modules alone (GaLore, APOLLO) are not supported: use `adamw_torch_fused`, or "
    "`peft_config` to train few parameters"
)

Class = type[Any]
"""Of an optimizer, whose constructor takes parameters and options of its own."""


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """One optimizer."""

    name: str = ""
    """That `SFTConfig.optim` calls it by; empty: users construct it themselves."""
    constructor: Callable[[], Class] | None = None
    """Its class, of torch or transformers; None: it is a package's."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """That transformers constructs it with, where they change its states."""
    num_states: int | None = None
    """Arrays of a parameter's shape that it keeps; None: that is not known."""
    option_states: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    """Options that add one such array each, and how their text is read."""
    reads_optim_args: bool = False
    """Whether transformers hands it these options from `optim_args`."""
    is_factored: bool = False
    """Whether it keeps one more state, of sums by rows and by columns in place of a matrix."""
    is_eight_bit: bool = False
    """Whether a value of a state takes one byte, and a block of them a scale; see `memory.optimizers.StatesByRule`."""
    step_unit: Literal["value", "parameter", "all"] = "all"
    """The least that its step takes by itself: of "value" and "parameter" it can be taken in pieces."""
    fused_on: tuple[str, ...] = ()
    """Kinds of devices for which torch has a fused kernel of it."""
    implementation: Literal["fused", "unfused"] | None = None
    """That its name asks for; None: it leaves that open."""
    package: str = ""
    """That has to be installed."""
    module: str = ""
    """Of the package, where it is called otherwise."""
    refusal: str = ""
    """Why it is not supported, and what to use."""

    @property
    def goes_in_pieces(self) -> bool:
        """Whether its step can be taken for some parameters at a time, with the same bits."""
        return self.step_unit != "all"

    def bytes_per_value(self, options: Mapping[str, Any]) -> int:
        """What it keeps for each value of a parameter; 0 where that is not known, or little.

        Args:
            options: of a parameter group, or as `options_of` reads them.
        """
        return STATE_BYTES * ((self.num_states or 0) + sum(bool(options.get(name)) for name in self.option_states))

    def parameter_bytes(self, parameter: torch.Tensor, options: Mapping[str, Any]) -> int:
        """What it keeps for a parameter, its count of steps left out."""
        size, shape = parameter.numel(), parameter.shape
        factors = 0
        if self.is_factored:
            factors = size // shape[-1] + size // shape[-2] if len(shape) > 1 else size
        return self.bytes_per_value(options) * size + STATE_BYTES * factors


def _adafactor() -> Class:
    from transformers.optimization import Adafactor

    return Adafactor


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _bitsandbytes(name: str, num_states: int | None = None, *, is_eight_bit: bool = False) -> OptimizerFacts:
    """By rule, unmeasured; paged states are not known."""
    return OptimizerFacts(name, num_states=num_states, is_eight_bit=is_eight_bit, package="bitsandbytes")


def _torchs(
    constructor: Callable[[], Class], num_states: int, step_unit: Literal["value", "parameter"] = "value", **facts: Any
) -> OptimizerFacts:
    return OptimizerFacts(constructor=constructor, num_states=num_states, step_unit=step_unit, **facts)


_ADAMW = _torchs(lambda: torch.optim.AdamW, 2, option_states={"amsgrad": _is_true}, fused_on=("cpu", "cuda"))

_REFUSED = {
    SOME_MODULES_ONLY: (
        "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
        "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise",
    ),
    "it takes its step inside the backward pass, before a whole optimizer batch has been seen: use "
    "`adamw_torch_fused`": ("lomo", "adalomo"),
    "its weights differ between training and evaluation, which is not supported yet: use `adamw_torch_fused`": (
        "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd",
    ),
    "XLA devices are not supported: use `adamw_torch_fused`": ("adamw_torch_xla",),
    "NPUs are not supported: use `adamw_torch_fused`": ("adamw_torch_npu_fused",),
    "it needs torchdistx, which is no longer maintained: use `adamw_torch_fused`": ("adamw_anyprecision",),
}  # fmt: skip
"""Why an optimizer of transformers' is not supported, and what to use, to the names of those."""

ROWS: tuple[OptimizerFacts, ...] = (
    # torch's own, by transformers' names
    replace(_ADAMW, name="adamw_torch", implementation="unfused"),
    replace(_ADAMW, name="adamw_torch_fused", implementation="fused"),
    _torchs(
        lambda: torch.optim.SGD,
        0,
        name="sgd",
        option_states={"momentum": float},
        reads_optim_args=True,
        fused_on=("cpu", "cuda"),
    ),
    _torchs(lambda: torch.optim.Adagrad, 1, name="adagrad", fused_on=("cpu",)),
    _torchs(
        lambda: torch.optim.RMSprop,
        1,
        name="rmsprop",
        option_states={"momentum": float, "centered": _is_true},
        reads_optim_args=True,
    ),
    # torch's own, which users construct
    _torchs(lambda: torch.optim.Adam, 2, option_states={"amsgrad": _is_true}, fused_on=("cpu", "cuda")),
    _torchs(lambda: torch.optim.NAdam, 2),
    _torchs(lambda: torch.optim.RAdam, 2),
    _torchs(lambda: torch.optim.Adadelta, 2),
    _torchs(lambda: torch.optim.Adamax, 2),
    _torchs(lambda: torch.optim.Adafactor, 0, "parameter", is_factored=True),
    _torchs(lambda: torch.optim.ASGD, 1, "parameter"),
    _torchs(lambda: torch.optim.Muon, 1, "parameter"),
    _torchs(lambda: torch.optim.Rprop, 2, "parameter"),
    _torchs(lambda: torch.optim.SparseAdam, 2, "parameter"),
    OptimizerFacts(
        constructor=lambda: torch.optim.LBFGS,
        refusal="LBFGS computes the loss several times within its step, which no trainer's step does: choose another "
        "optimizer (optim='adamw_torch_fused').",
    ),
    # transformers'
    OptimizerFacts(
        "adafactor",
        _adafactor,
        arguments={"scale_parameter": False, "relative_step": False},
        num_states=0,
        option_states={"beta1": float},
        is_factored=True,
    ),
    # bitsandbytes'
    _bitsandbytes("adamw_bnb_8bit", 2, is_eight_bit=True),
    _bitsandbytes("adamw_8bit", 2, is_eight_bit=True),
    _bitsandbytes("ademamix", 3),
    _bitsandbytes("ademamix_8bit", 3, is_eight_bit=True),
    _bitsandbytes("lion_8bit", 1, is_eight_bit=True),
    _bitsandbytes("lion_32bit", 1),
    _bitsandbytes("rmsprop_bnb", 1),
    _bitsandbytes("rmsprop_bnb_8bit", 1, is_eight_bit=True),
    _bitsandbytes("rmsprop_bnb_32bit", 1),
    *(
        _bitsandbytes(f"paged_{name}")
        for name in ("adamw_32bit", "adamw_8bit", "ademamix_32bit", "ademamix_8bit", "lion_32bit", "lion_8bit")
    ),
    # other packages'
    OptimizerFacts("adamw_torch_4bit", package="torchao"),
    OptimizerFacts("adamw_torch_8bit", package="torchao"),
    OptimizerFacts("grokadamw", package="grokadamw"),
    OptimizerFacts("stable_adamw", package="torch-optimi", module="optimi"),
    # refused
    *(OptimizerFacts(name, refusal=reason) for reason, names in _REFUSED.items() for name in names),
)
"""All of them."""
_BY_NAME = {facts.name: facts for facts in ROWS if facts.name}
_UNKNOWN = OptimizerFacts()
TORCH_NAMES = tuple(facts.name for facts in ROWS if facts.name and facts.goes_in_pieces)
"""Of torch's own: their steps have several implementations, and take each parameter by itself."""


def named(name: str) -> OptimizerFacts:
    """The row of a name of `SFTConfig.optim`; where there is none, one in which nothing is known."""
    return _BY_NAME.get(name, _UNKNOWN)


def of_class(kind: type) -> OptimizerFacts | None:
    """The row of a class, a subclass of it left out, which may step otherwise; None: there is none."""
    return next((facts for facts in ROWS if facts.constructor is not None and facts.constructor() is kind), None)


def of_base(kind: type) -> OptimizerFacts | None:
    """The row of a class, or of the nearest class that it is a subclass of; None: there is none."""
    return next((facts for base in kind.__mro__ if (facts := of_class(base)) is not None), None)


def facts_of(optimizer: torch.optim.Optimizer) -> OptimizerFacts | None:
    """The row of an optimizer's class; None: there is none."""
    return of_class(type(optimizer))


def implementations(name: str, device_type: str) -> tuple[str, ...]:
    """Those of an optimizer on a device, the fastest first; empty where it has no others.

    On a CPU torch's `foreach` goes over parameters one by one too, and is left out.

    Args:
        name: `SFTConfig.optim`.
        device_type: "cpu" or "cuda".
    """
    facts = named(name)
    if not facts.goes_in_pieces:
        return ()
    if device_type in facts.fused_on and facts.implementation != "unfused":
        return ("fused",)
    return ("for-loop",) if kind_of(device_type).is_host else ("foreach", "for-loop")


def options_of(name: str, optim_args: str | None) -> dict[str, Any]:
    """What `optim_args` says that changes an optimizer's states, as transformers reads it.

    Example: "momentum=0.9" of sgd is {"momentum": 0.9}; of adamw_torch it says nothing.
    """
    facts = named(name)
    said = dict(one.partition("=")[::2] for one in (optim_args or "").replace(" ", "").split(",") if one)
    read = facts.option_states if facts.reads_optim_args else {}
    return {option: parse(said[option]) for option, parse in read.items() if option in said}


def state_bytes(name: str, options: Mapping[str, Any] | None = None) -> int | None:
    """What torch's own optimizers keep for each trained value; None for others, whose states stay on the device.

    Args:
        name: `SFTConfig.optim`.
        options: see `options_of`.
    """
    facts = named(name)
    return facts.bytes_per_value(options or {}) if facts.goes_in_pieces else None


def flags(implementation: str) -> dict[str, bool]:
    """torch's arguments for an implementation."""
    return {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def set_implementation(optimizer: torch.optim.Optimizer, implementation: str | None) -> None:
    """From here on the optimizer's step is of this kind.

    Args:
        optimizer: one of torch's own.
        implementation: "fused", "foreach" or "for-loop"; None: it is left as it is.

    Raises:
        ConfigurationError: it has no such implementation.
    """
    if implementation is None:
        return
    wanted = flags(implementation)
    for group in optimizer.param_groups:
        for flag, value in wanted.items():
            if flag in group:
                group[flag] = value
            elif value:
                raise ConfigurationError(
                    f"optimizer_implementation={implementation!r}: torch has no such {type(optimizer).__name__}; leave "
                    "it out."
                )
    for flag, value in wanted.items():
        if flag in optimizer.defaults:
            optimizer.defaults[flag] = value
