"""`SFTConfig`: every option of a training run, under the names of trl and transformers.

A real `transformers.TrainingArguments`, so that isinstance checks, integrations, `HfArgumentParser` and `TrlParser`
work. Constructing one checks everything that can be known from the options alone and raises one error with all
problems. No annotations from the future here: argument parsers read the types.
"""

import dataclasses
import os
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sartor.config import checks
from sartor.config.environment import environment_problems, is_true, precision_problem
from sartor.config.names import OldNames
from sartor.config.own_options import OwnOptions, option
from sartor.device import is_supported
from sartor.errors import ConfigurationError, RenamedWarning
from sartor.masking import is_secret, masked, masked_text

_PRECISION = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
_OLD_VALUES = {"loss_type": {"chunked_nll": "nll"}, "packing_strategy": {"bfd-requeue": "bfd_split"}}


@dataclass(repr=False)
class SFTConfig(OwnOptions, TrainingArguments, metaclass=OldNames):
    """All options of supervised fine-tuning; `docs/options.md` says what becomes of each.

    The fields are those of trl's `SFTConfig`, with its defaults but for `gradient_checkpointing` (None: the plan
    chooses), and those of `OwnOptions`.  An optimizer batch is `per_device_train_batch_size ×
    gradient_accumulation_steps` examples; how many of its tokens go through the model at once (`micro_batch_tokens`)
    never changes the gradient.

    Raises:
        ConfigurationError: with all problems found, each with what to do.
    """

    _VALID_DICT_FIELDS: typing.ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "dataset_kwargs",
    ]

    if typing.TYPE_CHECKING:  # transformers is untyped here, and these are assigned below
        include_num_input_tokens_seen: str | bool = "no"
        gradient_accumulation_steps: int = 1
        activation_checkpointing: bool | None = None

    # --- fields of TrainingArguments with another default, type or old name ---
    learning_rate: float = option(2e-5, "Peak learning rate.")
    logging_steps: float = option(10, "Steps between two logs; below 1 a share of all steps.")
    bf16: bool | None = option(
        None,
        "Permit bfloat16 mixed precision; what is used depends on the device. If not set: True unless fp16 is.",
        nargs="?",
        const=True,
    )
    gradient_checkpointing: bool | None = option(
        None,
        "Recompute activations in the backward pass: less memory, more time. If not set, the plan chooses.",
        nargs="?",
        const=True,
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = option(
        None, "Further arguments of the schedule, such as '{\"num_cycles\": 1}'."
    )
    warmup_steps: float = option(0, "Steps of linear warmup; below 1 a share of all steps.", aliases=["--warmup_ratio"])
    eval_strategy: IntervalStrategy | str = option(
        "no", "When to evaluate: no, steps or epoch.", aliases=["--evaluation_strategy"]
    )
    use_cpu: bool = option(False, "Train on the CPU even where there is a GPU.", aliases=["--no_cuda"])

    # --- the model ---
    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "Arguments of `from_pretrained` where the model is given by name: dtype, attn_implementation, ..."
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with a model or tokenizer. Only for sources you trust."
    )
    router_aux_loss_coef: float | None = option(
        None, "Weight of the load-balancing loss of mixture-of-experts models. If not set, the model's own."
    )
    chat_template_path: str | None = option(
        None, "Where to take the chat template from: a Jinja file, or a tokenizer's folder or name."
    )

    # --- the data ---
    dataset_text_field: str = option("text", "Column that holds plain text.")
    dataset_kwargs: dict[str, Any] | str | None = option(
        None, "The only key is skip_prepare_dataset: rows already have input_ids."
    )
    dataset_num_proc: int | None = option(None, "Processes that prepare the data.")
    eos_token: str | None = option(None, "Token that ends a turn. If not set, the tokenizer's own.")
    max_length: int | None = option(
        1024,
        "Most tokens of an example, longer ones are cut; length of a block when packing. None: never cut.",
        aliases=["--max_seq_length"],
    )
    truncation_mode: str = option(
        "keep_start", "Which end of a long example to keep.", choices=["keep_end", "keep_start"]
    )
    shuffle_dataset: bool = option(False, "Shuffle the rows once, before they are packed.")
    packing: bool = option(False, "Put several examples into blocks of max_length; none sees another.")
    packing_strategy: str = option(
        "bfd",
        "bfd: best fit, cuts what is too long; bfd_split: splits it; wrapped: fills every block to the brim.",
        choices=["bfd", "bfd_split", "wrapped"],
    )
    padding_free: bool = option(False, "Always the case; accepted for trl's sake.")
    pad_to_multiple_of: int | str | None = option("auto", "No effect: there is no padding. Accepted for trl's sake.")
    eval_packing: bool | None = option(
        None, "Pack the evaluation set too. If not set, as packing.", nargs="?", const=True
    )

    # --- the loss ---
    completion_only_loss: bool | None = option(
        None,
        "Train the completion alone. If not set: True for prompt and completion, else everything.",
        nargs="?",
        const=True,
    )
    assistant_only_loss: bool = option(False, "Train the assistant's turns alone: marked by the template, or proven.")
    loss_type: str = option(
        "nll",
        "nll, or dft (Dynamic Fine-Tuning, https://huggingface.co/papers/2508.05629).",
        choices=["nll", "dft", "chunked_nll"],
    )

    # --- the execution ---
    activation_offloading: bool = option(False, "Not supported yet.")
    pad_token: str | None = option(
        None, "Token to pad with. If not set, the tokenizer's own, or the one that ends a turn."
    )

    # No fields: other libraries list those.
    _splits_batch = False
    _names_batch = False

    def __init_subclass__(cls) -> None:
        """Keep `@dataclass` from giving a subclass a `__repr__` that shows secrets."""
        super().__init_subclass__()
        if "__repr__" not in vars(cls):
            setattr(cls, "__repr__", cls.__str__)  # noqa: B010 - no type has a method that is assigned

    def __new__(cls, *args: Any, **keywords: Any) -> "SFTConfig":
        """Note whether the size of a batch was given; parsers and `dataclasses.replace` give all there is."""
        made = super().__new__(cls)
        is_picked = not {entry.name for entry in dataclasses.fields(cls) if entry.init} <= keywords.keys()
        names = {"per_device_train_batch_size", "gradient_accumulation_steps"}
        made._names_batch = is_picked and not names.isdisjoint(keywords)
        return made

    def __post_init__(self) -> None:
        """Check, let transformers derive what it derives, check again; see the class for what is raised."""
        problems = {f"environment {number}": text for number, text in enumerate(environment_problems())}
        problems |= self._repair_what_would_break_construction()
        if any(name.startswith("environment") for name in problems):
            # Going on could make transformers wait for other processes.
            raise ConfigurationError(list(problems.values()))
        problems |= self._resolve_checkpointing()
        problems |= self._resolve_batch_size()
        self._construct_without_mixed_precision(problems)
        if isinstance(self.pad_to_multiple_of, str):
            self.pad_to_multiple_of = _as_multiple(self.pad_to_multiple_of, problems)
        problems = cross_problems(self) | problems
        if problems:
            raise ConfigurationError(list(problems.values()))

    def to_dict(self) -> dict[str, Any]:
        """Every option, as transformers gives them to loggers; secrets are masked, and `eos_token` is none."""
        options: dict[str, Any] = super().to_dict()
        plain = {name: getattr(self, name) for name in options if name.endswith("_token") and not is_secret(name)}
        shown: dict[str, Any] = masked({**options, **plain})
        return shown

    def __str__(self) -> str:
        """The class and its options, one a line; secrets are masked."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        lines = "".join(f"{name}={value},\n" for name, value in sorted(masked(values).items()))
        return masked_text(f"{type(self).__name__}(\n{lines})")

    __repr__ = __str__

    def _repair_what_would_break_construction(self) -> dict[str, str]:
        """Problems of single fields; each is put back to its default, so that the rest can be checked as well."""
        for name, renamed in _OLD_VALUES.items():
            value = getattr(self, name)
            if isinstance(value, str) and value in renamed:
                warnings.warn(f"{name}={value!r} is called {renamed[value]!r} today", RenamedWarning, stacklevel=5)
                setattr(self, name, renamed[value])
        if self.bf16 is None:
            self.bf16 = not self.fp16
        if isinstance(self.include_num_input_tokens_seen, bool):
            self.include_num_input_tokens_seen = "all" if self.include_num_input_tokens_seen else "no"
        if vars(self)["greater_is_better"] is None and str(self.metric_for_best_model).endswith("perplexity"):
            object.__setattr__(self, "greater_is_better", False)  # transformers knows losses alone
        if is_true(os.environ.get("ACCELERATE_USE_CPU")):
            self.use_cpu = True
        problems = field_problems(self)
        for name in problems:
            setattr(self, name, DEFAULTS[name])
        return problems

    def _resolve_checkpointing(self) -> dict[str, str]:
        """`activation_checkpointing` is transformers' newer name; both names hold the same value afterwards."""
        problems: dict[str, str] = {}
        for end in ("", "_kwargs"):
            old, new = f"gradient_checkpointing{end}", f"activation_checkpointing{end}"
            values = [value for value in (getattr(self, new), getattr(self, old)) if value is not None]
            if len(values) == 2 and values[0] != values[1]:
                problems[old] = (
                    f"{old}={values[1]!r} and {new}={values[0]!r} mean the same option and contradict each other: "
                    "set one, or both alike"
                )
            # Under the new name alone, or transformers calls the old one deprecated.
            setattr(self, new, values[0] if values else None)
            setattr(self, old, None)
        return problems

    def _resolve_batch_size(self) -> dict[str, str]:
        """Both parts of `total_batch_size`; where it alone is given, they hold until the plan chooses."""
        total, default = self.total_batch_size, int(DEFAULTS["per_device_train_batch_size"])
        size, steps = self.per_device_train_batch_size, self.gradient_accumulation_steps
        self._splits_batch = False
        if total is None:
            return {}
        usual = next(part for part in range(default, 0, -1) if total % part == 0)
        if not self._names_batch and (size, steps) in ((default, 1), (usual, total // usual)):
            self._splits_batch = True
            size, steps = usual, total // usual
        elif steps != 1 and size == default and total % steps == 0:
            size = total // steps
        if total % size:
            return {
                "total_batch_size": f"total_batch_size={total} is not a multiple of "
                f"per_device_train_batch_size={size}: change one of them"
            }
        if steps not in (1, total // size):
            return {
                "total_batch_size": f"total_batch_size={total} means gradient_accumulation_steps={total // size} with "
                f"per_device_train_batch_size={size}, but {steps} is given: leave gradient_accumulation_steps out"
            }
        self.take_batch(size, total // size)
        return {}

    @property
    def splits_batch(self) -> bool:
        """Whether `total_batch_size` alone was given, so that the plan chooses how it is split."""
        return self._splits_batch

    def take_batch(self, size: int, steps: int, *, is_final: bool = False) -> None:
        """Take these `per_device_train_batch_size` and `gradient_accumulation_steps`.

        For good, where they are final.
        """
        object.__setattr__(self, "per_device_train_batch_size", size)  # whose type transformers does not declare
        self.gradient_accumulation_steps = steps
        self._splits_batch &= not is_final

    def _construct_without_mixed_precision(self, problems: dict[str, str]) -> None:
        """Call transformers' own `__post_init__` with its mixed precision off.

        It refuses bf16 on a CPU, and would hand precision to accelerate; here both are permissions that the engine
        acts on.
        """
        held = {name: getattr(self, name) for name in (*_PRECISION, "ddp_backend")}
        checkpointing = self.activation_checkpointing
        for name in _PRECISION:
            setattr(self, name, False)
        # With a backend given accelerate would look for a group of processes, also for one.
        self.ddp_backend = None
        try:
            super().__post_init__()
            problems |= self._device_problems()
        except (ValueError, TypeError, NotImplementedError, OSError) as error:
            problems["transformers"] = str(error)
        for name, value in held.items():
            setattr(self, name, value)
        # transformers takes None for False; here it means that the plan chooses.
        self.activation_checkpointing = self.gradient_checkpointing = checkpointing
        # It read ACCELERATE_MIXED_PRECISION, which `cross_problems` compares with bf16 and fp16.
        self.mixed_precision = "no"

    def _device_problems(self) -> dict[str, str]:
        if not is_supported(self.device):
            return {"device": f"the device {self.device.type!r} is not supported: set use_cpu=True to train on the CPU"}
        if self.n_gpu > 1:
            return {
                "device": f"this process sees {self.n_gpu} GPUs, and Sartor trains on one: pick it with the "
                "environment variable CUDA_VISIBLE_DEVICES, such as CUDA_VISIBLE_DEVICES=0"
            }
        return {}


def _as_multiple(text: str, problems: dict[str, str]) -> int | None:
    """`pad_to_multiple_of` from a command line."""
    if text.lower() in ("auto", "none", "null"):
        return None
    if text.isdecimal():
        return int(text)
    problems["pad_to_multiple_of"] = (
        f"pad_to_multiple_of={text!r} is unknown: it must be a whole number, 'auto' or None"
    )
    return None


DEFAULTS: Mapping[str, Any] = {
    entry.name: entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    for entry in dataclasses.fields(SFTConfig)
}
"""Field name to default, before anything is derived from it."""

_HINTS = typing.get_type_hints(SFTConfig)

ENUMERATIONS: Mapping[str, type[Enum]] = {
    name: kind
    for name in DEFAULTS
    for kind in checks.kinds_of(_HINTS[name])[0]
    if isinstance(kind, type) and issubclass(kind, Enum)
}
"""Field name to the enumeration that has its values."""


def field_problems(args: SFTConfig) -> dict[str, str]:
    """What is wrong with single fields, by name."""
    wrong_types = checks.wrong_types(args, _HINTS, DEFAULTS)
    unknown = checks.unknown_names(args, ENUMERATIONS)
    optimizer = {} if "optim" in unknown else checks.unusable_optimizer(args)
    return checks.out_of_range(args) | unknown | optimizer | wrong_types | checks.refused(args, DEFAULTS)


def cross_problems(args: SFTConfig) -> dict[str, str]:
    """What is wrong between fields, and with the environment, by the field to change."""
    problems = checks.contradictions(args)
    precision = precision_problem(bool(args.bf16), bool(args.fp16))
    return problems | ({"mixed precision": precision} if precision else {})
