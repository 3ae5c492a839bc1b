"""How every command reads what it was asked for: its own words, then the option files that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sartor.cli import option_file
from sartor.cli.flags import Flag, Given, keys_of, parse, tokens


@dataclass(frozen=True, slots=True)
class Request:
    """What a command that knows the options of `sartor train` was asked for."""

    model: str
    data: tuple[str, ...]
    """Sources as they were written, perhaps with weights; none where the command can do without."""
    fields: Mapping[str, Any]
    """Keyword arguments of SFTConfig that have a part in the command."""
    own: Mapping[str, Any]
    """Those of the command's own flags that were given."""
    idle: tuple[str, ...] = ()
    """Options of `sartor train` that were given and have no part in the command."""


def read_options(
    command: str, argv: Sequence[str], flags: tuple[Flag, ...], *, positional: str = ""
) -> tuple[dict[str, Any], list[Given], list[str]]:
    """Read a command line and the files it names.

    Args:
        command: as it is typed after `sartor`.
        positional: the option that a word without a name is the value of; "": there is none.

    Returns:
        The values of the options that were given, by name; the options as they were written; a sentence per problem.
    """
    givens, rest = tokens(argv, flags, takes_words=bool(positional))
    problems: list[str] = []
    options = option_file.with_files(givens, flags, problems)
    known = keys_of(flags)
    if positional and rest:
        count = len(rest) if known[positional].kind == "list" else 1
        words, rest = rest[:count], rest[count:]
        if any(known.get(given.key.replace("-", "_")) is known[positional] for given in givens):
            problems.append(f"{', '.join(map(repr, words))} and --{positional} say the same: give one of them")
        options.append(Given(positional, tuple(words)))
    problems += [f"{text!r} belongs to no option" for text in rest]
    values, unreadable = parse(options, flags, command)
    return values, options, problems + unreadable
