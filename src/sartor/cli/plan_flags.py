"""Reads the command line of `sartor plan`, and writes its help.

It takes every option of `sartor train`, so that one option file, or one command line with another first word, serves
both; the rows may be left out.
"""

from collections.abc import Sequence

from sartor.cli.field_flags import FIELD_FLAGS
from sartor.cli.flags import Flag, help_text
from sartor.cli.own_flags import LORA, OWN_FLAGS
from sartor.cli.request import Request, read_options, request_of
from sartor.errors import ConfigurationError
from sartor.records import PLAN_CHOICES

ASKED = "what to plan for"

PLAN_FLAGS = (
    Flag("gpu", "str", None, "A GPU by name: T4, L4, A10, RTX4090, A100, H100, H200, ...", ASKED, optional=True),
    Flag("memory", "str", None, "Memory of this machine's kind of device: 16GB. Default: what is free.", ASKED,
         optional=True),
    Flag("json", "bool", False, "Print JSON instead (docs/memory.md has its keys).", ASKED),
)  # fmt: skip

FLAGS: tuple[Flag, ...] = (*PLAN_FLAGS, *OWN_FLAGS, *FIELD_FLAGS)

_USED_OWN = ("model", "data", "split", "dataset_config", "dataset_revision", "config", "model_revision", "dtype")
_USED_FIELDS = (
    "max_length",
    "packing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "total_batch_size",
    *PLAN_CHOICES,
    "bf16",
    "fp16",
    "optim",
    "num_train_epochs",
    "max_steps",
)

_USAGE = """usage: sartor plan --model MODEL [--data DATA] [--gpu GPU | --memory 16GB] [options]

Says what a training would need, which settings would be chosen, and what others would cost; where it does not fit,
what would make it fit. Of the model only the configuration is read, of the data the tokens.

  sartor plan --model meta-llama/Llama-3.1-8B --gpu H100
  sartor plan --model HuggingFaceTB/SmolLM2-135M --data chats.jsonl --gpu T4 --max_length 650

Exit code: 0, or 1 where it does not fit, or 2 where the command itself is wrong."""

_FOOTER = "Every other option of `sartor train` is accepted too."


def read(argv: Sequence[str]) -> Request:
    """Parse a command line and the file it names.

    Raises:
        ConfigurationError: with all problems found.
    """
    values, _, problems = read_options("plan", argv, FLAGS)
    if values.get("model") is None:
        problems.append("--model is missing: give a folder or a Hub id; its configuration is all that is read")
    if values.get("gpu") is not None and values.get("memory") is not None:
        problems.append("--gpu and --memory both say what there is: give one of them")
    if problems:
        raise ConfigurationError(problems)
    return request_of(values, (*PLAN_FLAGS, *OWN_FLAGS), FIELD_FLAGS)


def usage() -> str:
    """What `sartor plan --help` prints."""
    own = [flag for flag in OWN_FLAGS if flag.name in _USED_OWN]
    lora = [flag for flag in OWN_FLAGS if flag.group == LORA]
    fields = [flag for flag in FIELD_FLAGS if flag.name in _USED_FIELDS]
    return help_text(_USAGE, [*PLAN_FLAGS, *own, *fields, *lora], _FOOTER)
