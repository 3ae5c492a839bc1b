"""Reads the command line of `sartor train` and the files it names, and writes its help."""

from collections.abc import Mapping, Sequence
from typing import Any

from sartor.cli.field_flags import FIELD_FLAGS
from sartor.cli.flags import Flag, Given, help_text
from sartor.cli.own_flags import LORA, OWN_FLAGS
from sartor.cli.request import Request, read_options, request_of
from sartor.errors import ConfigurationError

FLAGS: tuple[Flag, ...] = (*OWN_FLAGS, *FIELD_FLAGS)

_USAGE = """usage: sartor train --model MODEL --data DATA [options]

Fine-tunes a language model on conversations, and leaves the result in output_dir.

  sartor train --model HuggingFaceTB/SmolLM2-135M --data chats.jsonl --output_dir my-model
  sartor train --config run.yaml --learning_rate 1e-4

Names may be written with dashes or underscores. Switches: --packing, --packing false, --no-packing."""

_MODEL_KEYS = {"dtype": "dtype", "attn_implementation": "attn_implementation", "model_revision": "revision"}
"""Flags that stand for a key of model_init_kwargs."""


def read(argv: Sequence[str]) -> Request:
    """Parse a command line and the files it names.

    Raises:
        ConfigurationError: with all problems found.
    """
    values, options, problems = read_options("train", argv, FLAGS)
    problems += [*_own_problems(values, options), *_evaluation_problems(values)]
    if values.get("resume_from_checkpoint") is not None:
        values["resume"] = values.pop("resume_from_checkpoint")
    model_init_kwargs = _model_init_kwargs(values.pop("model_init_kwargs", None), values, problems)
    if problems:
        raise ConfigurationError(problems)
    if model_init_kwargs:
        values["model_init_kwargs"] = model_init_kwargs
    return request_of(values, OWN_FLAGS, FIELD_FLAGS)


def usage(head: str = _USAGE) -> str:
    """What `sartor train --help` prints, or another command with the same options under its own head."""
    refused = sorted(flag.name for flag in FLAGS if flag.refused)
    idle = sorted(flag.name for flag in FIELD_FLAGS if not flag.group and not flag.refused)
    footer = (
        f"Not supported, and an error when set: {', '.join(refused)}.\n\n"
        f"Accepted for trl's and transformers' sake, without effect: {', '.join(idle)}.\n\n"
        "docs/options.md has the reasons."
    )
    return help_text(head, _by_group(), footer)


def _by_group() -> list[Flag]:
    """The flags with those of one heading next to each other; LoRA last."""
    order = list(dict.fromkeys(flag.group for flag in FLAGS))
    order.sort(key=lambda group: group == LORA)
    return sorted(FLAGS, key=lambda flag: order.index(flag.group))


def _own_problems(values: Mapping[str, Any], givens: Sequence[Given]) -> list[str]:
    problems = []
    for name, what in (("model", "a folder"), ("data", "a file")):
        if values.get(name) is None:
            problems.append(f"--{name} is missing: give {what} or a Hub id")
    if None not in (values.get("resume"), values.get("resume_from_checkpoint")):
        problems.append("--resume and --resume_from_checkpoint are the same: give one of them")
    for flag in OWN_FLAGS:
        if flag.refused and values.get(flag.name):
            problems.append(f"--{flag.name} is not supported: {flag.refused}")
    if not values.get("use_peft"):
        idle = [flag.name for flag in OWN_FLAGS if flag.group == LORA and values.get(flag.name, False) is not False]
        if idle:
            problems.append(f"--{', --'.join(idle)} only with --use_peft: add it, or leave them out")
    for given in givens:
        if given.key.replace("-", "_") == "warmup_ratio" and values.get("warmup_steps", 0) >= 1:
            problems.append(f"--warmup_ratio {given.texts[0]} is no share of the steps: it must be less than 1")
    return problems


def _evaluation_problems(values: Mapping[str, Any]) -> list[str]:
    evaluates = values.get("eval_strategy", "no") != "no" or values.get("eval_on_start", False)
    has_rows = values.get("eval_data") is not None or values.get("eval_split") is not None
    if evaluates and not has_rows:
        return ["evaluating needs rows: give --eval_data FILE or --eval_split NAME"]
    if has_rows and not evaluates:
        return ["--eval_data and --eval_split need --eval_strategy steps or epoch: give it, or leave them out"]
    return []


def _model_init_kwargs(
    given: Mapping[str, Any] | None, values: Mapping[str, Any], problems: list[str]
) -> dict[str, Any] | None:
    """`model_init_kwargs` together with the flags that stand for some of its keys."""
    merged = dict(given or {})
    for flag, key in _MODEL_KEYS.items():
        value = values.get(flag)
        if value is None:
            continue
        if merged.setdefault(key, value) != value:
            problems.append(f"--{flag} {value} contradicts model_init_kwargs, where {key} is {merged[key]!r}: give one")
    return merged or None
