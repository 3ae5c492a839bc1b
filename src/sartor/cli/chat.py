"""`sartor chat MODEL`: talk to a model in the terminal, or get one answer for a script.

No heavy library is imported before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sartor.chat.options import SamplingOptions
from sartor.cli.quiet import errors_alone
from sartor.errors import ConfigurationError

HELP = "talk to a model in the terminal, or get one answer for a script"

_DESCRIPTION = """\
Talk to a model: a folder that training left, a Hub id, or the folder or id of a LoRA adapter.

Answers stream to standard output, notes go to standard error. In the conversation, /reset forgets it, /system TEXT
sets the system text, /help lists all; Ctrl-C stops an answer, Ctrl-D leaves.
"""
_SAMPLING = """\
What is not given follows the model's generation_config.json. Where that says nothing: temperature 0.7, top-p 0.9,
at most 512 tokens. A temperature, top-p or top-k turns sampling on even where the file says greedy."""


class _Parser(argparse.ArgumentParser):
    """Adds what a misspelt option was probably meant to be."""

    def error(self, message: str) -> NoReturn:
        words = message.split(": ", 1)[1].split() if message.startswith("unrecognized arguments: ") else []
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for word in words:
            near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sartor chat",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a model or a LoRA adapter, or a Hub id")
    add("--prompt", metavar="TEXT", help='answer TEXT once and exit; "-" reads it from standard input')
    add("--system", metavar="TEXT", help="system text")
    add("--compare", metavar="BASE", help="let this model answer first, then MODEL")
    sampling = parser.add_argument_group("sampling", _SAMPLING).add_argument
    sampling("--temperature", type=float, metavar="X", help="0 is greedy; higher is more varied")
    sampling("--top-p", type=float, metavar="X", help="draw among the likeliest tokens, up to probability X together")
    sampling("--top-k", type=int, metavar="N", help="draw among the N likeliest tokens; 0: all")
    sampling("--repetition-penalty", type=float, metavar="X", help="above 1: avoid tokens that are already there")
    sampling("--max-new-tokens", type=int, metavar="N", help="longest answer")
    sampling("--seed", type=int, metavar="N", help="the same seed and conversation give the same answer")
    sampling("--greedy", action="store_true", help="always the likeliest token")
    loading = parser.add_argument_group("loading").add_argument
    loading("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: the first GPU, else the CPU")
    loading(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16 or float16; default: the model's own, but float32 where the device lacks it",
    )
    loading("--base", metavar="MODEL", help="base model of an adapter, instead of the one that it names")
    loading("--revision", metavar="REV", help="branch, tag or commit of MODEL on the Hub")
    loading("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor chat`; returns the exit code.  Raises SartorError."""
    arguments = _parser().parse_args([_with_dashes(word) for word in argv])
    options = SamplingOptions(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        repetition_penalty=arguments.repetition_penalty,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        greedy=arguments.greedy,
    )
    question = _question(arguments.prompt)
    try:
        if question is None and sys.stderr.isatty():
            print(f"loading {arguments.model} ...", file=sys.stderr, flush=True)
        # Of the libraries only errors: what a reader must know is in the notes, and a script's log stays short.
        with errors_alone():
            return _talk(arguments, options, question)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the answer has left (`| head`).  Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _with_dashes(word: str) -> str:
    """Take `--top_p` as `--top-p`; a value after `=` stays as it is."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _question(prompt: str | None) -> str | None:
    if prompt is None:
        return None
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        where = "standard input is empty" if prompt == "-" else "--prompt is empty"
        raise ConfigurationError(f"{where}: there is no question to answer.")
    return text.strip("\n")


def _talk(arguments: argparse.Namespace, options: SamplingOptions, question: str | None) -> int:
    """Load what was named, then answer once or converse."""
    from sartor.chat.sample import load
    from sartor.chat.terminal import Conversation, Participant, Screen, answer_once, converse, line_reader

    _write_any_text()
    device, dtype, trusts = arguments.device, arguments.dtype, arguments.trust_remote_code
    participants = []
    if arguments.compare is not None:
        base = load(arguments.compare, device=device, dtype=dtype, trust_remote_code=trusts)
        participants.append(Participant(arguments.compare, base))
    tuned = load(
        arguments.model,
        device=device,
        dtype=dtype,
        revision=arguments.revision,
        trust_remote_code=trusts,
        base=arguments.base,
    )
    participants.append(Participant(arguments.model, tuned))
    screen = Screen(sys.stdout, sys.stderr)
    conversation = Conversation(participants, options, arguments.system, screen)
    if question is not None:
        return answer_once(conversation, question)
    return converse(conversation, screen, line_reader())


def _write_any_text() -> None:
    """Where the terminal's encoding lacks a character of the answer, show a question mark instead of ending."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # absent where standard output was replaced
    if reconfigure is not None:
        reconfigure(errors="replace")
