"""`sartor COMMAND`: finds the command, runs it, and turns errors into messages and exit codes.

0: done.  2: something the user can mend, said on stderr without a traceback.  130: interrupted.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from sartor.cli.quiet import variables
from sartor.errors import SartorError
from sartor.masking import masked_errors, masked_logs
from sartor.version import __version__

COMMANDS = {
    "train": "fine-tune a language model on conversations",
    "inspect": "show what would be trained on, and what is wrong with it",
    "plan": "say what a training would need, and what would make it fit",
    "profile": "measure a step's memory, and show what consumes it",
    "chat": "talk to a model in the terminal",
    "demo": "fine-tune the built-in model, and see what changes, in about two minutes",
    "env": "print what a bug report needs",
}
"""Command to its line in the help.  A command is the module `sartor.cli.<command>`, loaded when it is called; it has
`run` and `usage`."""


BEFORE_TORCH = {"THP_MEM_ALLOC_ENABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Environment variables that torch reads when it is loaded, and what suits one process that trains: large allocations
in
huge pages, and threads that sleep rather than spin when something else wants the cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"sartor {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean `sartor {near[0]}`?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"sartor: the command {command!r} is unknown: {hint}", file=sys.stderr)
        return 2
    try:
        with variables(BEFORE_TORCH), masked_errors(), masked_logs():
            module = importlib.import_module(f"sartor.cli.{command}")
            if any(argument in ("-h", "--help") for argument in arguments[1:]):
                print(module.usage())
                return 0
            return int(module.run(arguments[1:]))
    except SartorError as error:
        _complain(f"sartor {command}: {error}")
        return 2
    except KeyboardInterrupt:
        _complain(f"\nsartor {command}: interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output (`sartor env | head`) has had enough; Python would complain again while exiting.
        sys.stderr.close()
        return 0


def _complain(text: str) -> None:
    """Print to standard error; where that cannot be written, the exit code must still be the command's."""
    from sartor.run.output import lines_may_be_lost

    with lines_may_be_lost():
        print(text, file=sys.stderr)


def usage() -> str:
    """What `sartor --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sartor COMMAND [options]",
            "",
            "Fits a language model to your conversations, and to your machine.",
            "",
            *lines,
            "",
            "`sartor COMMAND --help` lists a command's options; `sartor --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
