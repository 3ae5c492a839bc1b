"""`sartor demo`: the whole job on the embedded default, or with `--real` on a real model's weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sartor.cli.flags import Flag, help_text
from sartor.cli.quiet import variables
from sartor.cli.request import read_options
from sartor.errors import ConfigurationError

ASKED = "options"

FLAGS = (
    Flag("seed", "int", 42, "Of the fine-tuning: the order of rows.", ASKED),
    Flag(
        "output_dir",
        "str",
        None,
        "Where the model goes; default: runs/demo (runs/demo-real), or a numbered sibling.",
        ASKED,
    ),
    Flag("real", "bool", False, "The same on SmolLM2-135M: a download and a few minutes.", ASKED),
    Flag("chat", "bool", None, "Talk to the model afterwards; default: where this is a terminal.", ASKED),
)

_USAGE = """usage: sartor demo [options]

Fine-tune a small base model on bundled conversations, offline, in about two minutes on two cores, and show every step:
the base failing, the data, the training, the same questions before and after, and what still goes wrong."""

_LARGEST_SEED = 2**32 - 1
"""numpy's, whose generator transformers seeds too."""


def usage() -> str:
    """What `sartor demo --help` prints."""
    return help_text(_USAGE, FLAGS)


def read(argv: Sequence[str]) -> dict[str, Any]:
    """The values of all options, by name.

    Raises:
        ConfigurationError: with all problems found.
    """
    given, _, problems = read_options("demo", argv, FLAGS)
    values = {flag.name: flag.default for flag in FLAGS} | given
    if not 0 <= values["seed"] <= _LARGEST_SEED:
        problems.append(f"--seed {values['seed']} is no whole number from 0 to {_LARGEST_SEED}")
    if values["real"] and values["chat"]:
        problems.append("--chat goes with the embedded model; after --real, `sartor chat FOLDER` talks to what it made")
    if problems:
        raise ConfigurationError(problems)
    return values


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor demo`; returns the exit code.  Raises SartorError."""
    asked = read(argv)
    output_dir = None if asked["output_dir"] is None else Path(asked["output_dir"])
    if asked["real"]:
        from sartor.demo import real

        return real.run(output_dir=output_dir, seed=asked["seed"])

    from rich.console import Console

    from sartor.demo import show
    from sartor.demo.folder import choose_folder

    folder, note = choose_folder(output_dir)
    # transformers' bars for loading and saving a model of 2 MB would stand between the pages.
    with variables({"HF_HUB_DISABLE_PROGRESS_BARS": "1"}):
        show.run(seed=asked["seed"], folder=folder, console=Console(highlight=False), note=note)
    wants_chat = sys.stdin.isatty() and sys.stdout.isatty() if asked["chat"] is None else asked["chat"]
    if not wants_chat:
        return 0

    from sartor.cli import chat

    return chat.run([str(folder), "--greedy"])
