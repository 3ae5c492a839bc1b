"""Reads the command line of `sartor inspect`, and writes its help.

It knows every option of `sartor train`, so that one option file, or one command line with another first word, serves
both.  What concerns the data is used; of the rest it says that it has no part in this.
"""

from collections.abc import Sequence

from sartor.cli.field_flags import FIELD_FLAGS
from sartor.cli.flags import Flag, help_text
from sartor.cli.own_flags import OWN_FLAGS
from sartor.cli.request import Request, read_options, request_of
from sartor.errors import ConfigurationError

SHOWN = "what to show"
USED_GROUPS = ("model", "data")
USED_FIELDS = ("completion_only_loss", "assistant_only_loss", "unroll", "append_eot", "target_start", "no_targets")
"""Of the group "loss", those that decide which tokens are trained."""
USED_OWN = (
    "model",
    "data",
    "split",
    "dataset_config",
    "dataset_revision",
    "eval_data",
    "eval_split",
    "config",
    "model_revision",
)

INSPECT_FLAGS = (
    Flag("html", "str", None, "Write one page with everything, to open in a browser.", SHOWN, optional=True),
    Flag("png", "str", None, "Write the histogram of lengths as a picture.", SHOWN, optional=True),
    Flag("out", "str", None, "Write page, picture and JSON into this folder.", SHOWN, optional=True),
    Flag("json", "bool", False, "Print JSON instead (docs/inspect.md has its keys).", SHOWN),
    Flag("rows", "int", None, "Rows to show token by token: 3 in the terminal, 50 on the page.", SHOWN, optional=True),
)

_OWN = tuple(flag for flag in OWN_FLAGS if flag.name in USED_OWN)
_FIELDS = tuple(flag for flag in FIELD_FLAGS if flag.group in USED_GROUPS or flag.name in USED_FIELDS)
FLAGS: tuple[Flag, ...] = (*OWN_FLAGS, *INSPECT_FLAGS, *FIELD_FLAGS)

_USAGE = """usage: sartor inspect DATA --model MODEL [options]

Shows what would be trained on, and what is probably wrong with it. Of the model only the tokenizer and the
configuration are loaded.

  sartor inspect chats.jsonl --model HuggingFaceTB/SmolLM2-135M --assistant_only_loss
  sartor inspect chats.jsonl --model my-model --max_length 2048 --eval_data held_out.jsonl --html report.html
  sartor inspect chats.jsonl:0.7 stories.parquet:0.3 --model my-model

Exit code: 0, or 1 where a training run would stop because of the data, or 2 where the command itself is wrong."""

_FOOTER = "Every other option of `sartor train` is accepted too, and has no part in this."


def read(argv: Sequence[str]) -> Request:
    """Parse a command line and the file it names.

    Raises:
        ConfigurationError: with all problems found.
    """
    values, _, problems = read_options("inspect", argv, FLAGS, positional="data")
    if values.get("data") is None:
        problems.append("DATA is missing: give a file or a Hub id")
    if values.get("model") is None:
        problems.append(
            "--model is missing: its tokenizer and chat template make the tokens; give a folder or a Hub id"
        )
    if values.get("rows") is not None and values["rows"] < 0:
        problems.append(f"--rows {values['rows']} is no number of rows: give 0 or more")
    if problems:
        raise ConfigurationError(problems)
    return request_of(values, (*_OWN, *INSPECT_FLAGS), _FIELDS)


def usage() -> str:
    """What `sartor inspect --help` prints."""
    return help_text(_USAGE, [*_OWN, *INSPECT_FLAGS, *_FIELDS], _FOOTER)
