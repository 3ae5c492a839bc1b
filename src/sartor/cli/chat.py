"""`sartor chat MODEL`: talk to a model in the terminal, or get one answer for a script.

No heavy library is imported before the arguments are known to be right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sartor.chat.options import SamplingOptions
from sartor.cli.flags import Flag, help_text
from sartor.cli.quiet import errors_alone
from sartor.cli.request import read_options
from sartor.errors import ConfigurationError

ANSWER, SAMPLING, LOADING = "what to answer", "sampling", "loading"

FLAGS = (
    Flag("model", "str", None, "MODEL: folder of a model or a LoRA adapter, or a Hub id.", ANSWER),
    Flag("prompt", "str", None, 'Answer TEXT once and exit; "-" reads it from standard input.', ANSWER),
    Flag("system", "str", None, "System text.", ANSWER),
    Flag("compare", "str", None, "Let this model answer first, then MODEL.", ANSWER),
    Flag("temperature", "float", None, "0 is greedy; higher is more varied.", SAMPLING),
    Flag("top_p", "float", None, "Draw among the likeliest tokens, up to probability X together.", SAMPLING),
    Flag("top_k", "int", None, "Draw among the N likeliest tokens; 0: all.", SAMPLING),
    Flag("repetition_penalty", "float", None, "Above 1: avoid tokens that are already there.", SAMPLING),
    Flag("max_new_tokens", "int", None, "Longest answer.", SAMPLING),
    Flag("seed", "int", None, "The same seed and conversation give the same answer.", SAMPLING),
    Flag("greedy", "bool", False, "Always the likeliest token.", SAMPLING),
    Flag("device", "str", None, "cpu, cuda, cuda:1; default: the first GPU, else the CPU.", LOADING),
    Flag(
        "dtype",
        "str",
        None,
        "float32, bfloat16 or float16; default: the model's own, but float32 where the device lacks it.",
        LOADING,
    ),
    Flag("base", "str", None, "Base model of an adapter, instead of the one that it names.", LOADING),
    Flag("revision", "str", None, "Branch, tag or commit of MODEL on the Hub.", LOADING),
    Flag("trust_remote_code", "bool", False, "Run code that comes with the model.", LOADING),
)

_USAGE = """usage: sartor chat MODEL [options]

Talk to a model: a folder that training left, a Hub id, or the folder or id of a LoRA adapter.

Answers stream to standard output, notes go to standard error. In the conversation, /reset forgets it, /system TEXT
sets the system text, /help lists all; Ctrl-C stops an answer, Ctrl-D leaves. Names may be written with dashes or
underscores."""

_FOOTER = """\
What is not given follows the model's generation_config.json. Where that says nothing: temperature 0.7, top-p 0.9,
at most 512 tokens. A temperature, top-p or top-k turns sampling on even where the file says greedy."""


def usage() -> str:
    """What `sartor chat --help` prints."""
    return help_text(_USAGE, FLAGS, _FOOTER)


def read(argv: Sequence[str]) -> dict[str, Any]:
    """The values of all options, by name.

    Raises:
        ConfigurationError: with all problems found.
    """
    values, _, problems = read_options("chat", argv, FLAGS, positional="model")
    if "model" not in values:
        problems.append("MODEL is missing: give the folder of a model or a LoRA adapter, or a Hub id")
    if problems:
        raise ConfigurationError(problems)
    return {flag.name: flag.default for flag in FLAGS} | values


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor chat`; returns the exit code.  Raises SartorError."""
    asked = read(argv)
    options = SamplingOptions(**{flag.name: asked[flag.name] for flag in FLAGS if flag.group == SAMPLING})
    question = _question(asked["prompt"])
    try:
        if question is None and sys.stderr.isatty():
            print(f"loading {asked['model']} ...", file=sys.stderr, flush=True)
        # Of the libraries only errors: what a reader must know is in the notes, and a script's log stays short.
        with errors_alone():
            return _talk(asked, options, question)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the answer has left (`| head`).  Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _question(prompt: str | None) -> str | None:
    if prompt is None:
        return None
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        where = "standard input is empty" if prompt == "-" else "--prompt is empty"
        raise ConfigurationError(f"{where}: there is no question to answer.")
    return text.strip("\n")


def _talk(asked: Mapping[str, Any], options: SamplingOptions, question: str | None) -> int:
    """Load what was named, then answer once or converse."""
    from sartor.chat.sample import load
    from sartor.chat.terminal import Conversation, Participant, Screen, answer_once, converse, line_reader

    _write_any_text()
    loading = {name: asked[name] for name in ("device", "dtype", "trust_remote_code")}
    participants = []
    if asked["compare"] is not None:
        participants.append(Participant(asked["compare"], load(asked["compare"], **loading)))
    tuned = load(asked["model"], revision=asked["revision"], base=asked["base"], **loading)
    participants.append(Participant(asked["model"], tuned))
    screen = Screen(sys.stdout, sys.stderr)
    conversation = Conversation(participants, options, asked["system"], screen)
    if question is not None:
        return answer_once(conversation, question)
    return converse(conversation, screen, line_reader())


def _write_any_text() -> None:
    """Where the terminal's encoding lacks a character of the answer, show a question mark instead of ending."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # absent where standard output was replaced
    if reconfigure is not None:
        reconfigure(errors="replace")
