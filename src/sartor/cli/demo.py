"""`sartor demo`: the whole job on the embedded default, or with `--real` on a real model's weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sartor.cli.quiet import variables

HELP = "fine-tune the built-in model, and see what changes, in about two minutes"

_DESCRIPTION = """\
Fine-tune a small base model on bundled conversations, offline, in about two minutes on two cores, and show every step:
the base failing, the data, the training, the same questions before and after, and what still goes wrong.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sartor demo",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", type=_seed, default=42, metavar="N", help="of the fine-tuning: the order of rows (default: 42)")
    add(
        "--output-dir",
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="where the model goes; default: runs/demo (runs/demo-real), or a numbered sibling",
    )
    add("--real", action="store_true", help="the same on SmolLM2-135M: a download and a few minutes")
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="talk to the model afterwards; default: where this is a terminal",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor demo`; returns the exit code.  Raises SartorError."""
    parser = _parser()
    arguments = parser.parse_args(list(argv))
    if arguments.real and arguments.chat:
        parser.error("--chat goes with the embedded model; after --real, `sartor chat FOLDER` talks to what it made")
    if arguments.real:
        from sartor.demo import real

        return real.run(output_dir=arguments.output_dir, seed=arguments.seed)

    from rich.console import Console

    from sartor.demo import show
    from sartor.demo.folder import choose_folder

    folder, note = choose_folder(arguments.output_dir)
    # transformers' bars for loading and saving a model of 2 MB would stand between the pages.
    with variables({"HF_HUB_DISABLE_PROGRESS_BARS": "1"}):
        show.run(seed=arguments.seed, folder=folder, console=Console(highlight=False), note=note)
    wants_chat = sys.stdin.isatty() and sys.stdout.isatty() if arguments.chat is None else arguments.chat
    if not wants_chat:
        return 0

    from sartor.cli import chat

    return chat.run([str(folder), "--greedy"])


def _seed(text: str) -> int:
    """What numpy's generator accepts, which transformers seeds too."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
