"""Flags from a table: command lines and option files in, a dict of converted values out.

What it keeps true: dashes and underscores are the same, the last value given wins, an option file comes before the
command line, and all that is wrong is told at once, each with where it stands and the nearest name that exists.

Our own, and not argparse: every option may stand in a file as well as on the command line, problems are collected, and
parsing must not need torch.
"""

import difflib
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = ("none", "null")
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "is no whole number"),
    "float": (float, "is no number"),
    "str": (str, ""),
}
"""How a text becomes a value of a kind, and what is said where it cannot."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a command."""

    name: str
    """With underscores: `learning_rate` is `--learning_rate` and `--learning-rate`."""
    kind: str
    """bool, int, float, str, list (of texts, one or more) or dict (JSON)."""
    default: Any
    help: str
    group: str
    """Heading in the help; "" hides it there."""
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    optional: bool = False
    """Whether `none` is a value."""
    repeats: bool = False
    """A list whose occurrences add up; of other lists the last one wins."""
    refused: str = ""
    """Why this option is not supported; said instead of complaining about its value."""
    alone: str = ""
    """Its value where it is given without one; "": it needs one."""


@dataclass(frozen=True, slots=True)
class Given:
    """One option as it was given."""

    key: str
    texts: tuple[str, ...]
    where: str = ""
    """For messages: the file and key, or "" for the command line."""
    negated: bool = False


def parse(givens: Iterable[Given], flags: Sequence[Flag], command: str) -> tuple[dict[str, Any], list[str]]:
    """(values of those options that were given, by name; a sentence per unknown name or value that cannot be read)."""
    by_key = keys_of(flags)
    values: dict[str, Any] = {}
    started: set[str] = set()
    problems: list[str] = []
    for given in givens:
        flag = by_key.get(_normal(given.key))
        if flag is None:
            problems.append(_unknown(given, by_key, command))
            continue
        try:
            value = _convert(flag, given)
        except ValueError as error:
            reason = f"{_name(given)} is not supported: {flag.refused}" if flag.refused else str(error)
            problems.append(f"{_place(given)}{reason}")
            continue
        # A repeated list adds up within the file and within the command line; the command line replaces the file's.
        source = f"{flag.name} of {'file' if given.where else 'command line'}"
        if flag.repeats and source in started:
            value = [*values[flag.name], *value]
        started.add(source)
        values[flag.name] = value
    return values, problems


def tokens(argv: Sequence[str], flags: Sequence[Flag], *, takes_words: bool = False) -> tuple[list[Given], list[str]]:
    """Cut a command line into options: (options, texts that belong to none).

    Where the command takes words without a name, a word that is neither true nor false does not belong to the switch
    before it.
    """
    by_key = keys_of(flags)
    givens: list[Given] = []
    rest: list[str] = []
    position = 0
    while position < len(argv):
        text = argv[position]
        position += 1
        if not _is_flag(text):
            rest.append(text)
            continue
        key, equals, attached = text[2:].partition("=")
        flag, negated = by_key.get(_normal(key)), False
        if flag is None and _normal(key).startswith("no_"):
            positive = by_key.get(_normal(key)[3:])
            if positive is not None and positive.kind == "bool":
                flag, negated, key = positive, True, key[3:]
        if equals:
            givens.append(Given(key, (attached,), negated=negated))
            continue
        following = _following(argv[position:])
        # Of an unknown option nobody knows how many values it takes: all that follow, or they would be told as errors
        # too.
        many = flag is None or flag.kind == "list"
        if takes_words and flag is not None and flag.kind == "bool" and following[:1]:
            following = following[: following[0].lower() in (*_TRUE, *_FALSE)]
        count = len(following) if many else 0 if negated else min(1, len(following))
        givens.append(Given(key, tuple(following[:count]), negated=negated))
        position += count
    return givens, rest


def keys_of(flags: Sequence[Flag]) -> dict[str, Flag]:
    """Every name and alias, with underscores, to its flag."""
    return {key: flag for flag in flags for key in (flag.name, *flag.aliases)}


def _unknown(given: Given, known: Mapping[str, Flag], command: str) -> str:
    """The sentence about a name that does not exist."""
    near = difflib.get_close_matches(_normal(given.key), known, n=1, cutoff=0.6)
    option = f"{given.where}: {given.key}" if given.where else f"--{given.key}"
    lists_all = f"`sartor {command} --help` lists all options"
    hint = f"did you mean {'' if given.where else '--'}{near[0]}?" if near else lists_all
    return f"{option} is unknown: {hint}"


def help_text(usage: str, flags: Sequence[Flag], footer: str = "") -> str:
    """All flags that have a group, under their headings."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [usage]
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        if flag.group:
            groups.setdefault(flag.group, []).append(flag)
    for group, members in groups.items():
        lines += ["", f"{group[0].upper()}{group[1:]}:"]
        for flag in members:
            switch = "[no-]" if flag.kind == "bool" and flag.default is not False else ""
            head = f"  --{switch}{flag.name}{_value_name(flag)}"
            shown = "" if flag.default in (None, "", False) or flag.default == [] else f" [{flag.default}]"
            names = f" Also --{', --'.join(flag.aliases)}." if flag.aliases else ""
            body = textwrap.wrap(f"{flag.help}{names}{shown}", max(30, width - 36))
            first = f"{head:<34}  {body[0]}" if len(head) <= 34 else head
            lines += [first, *(" " * 36 + line for line in (body[1:] if len(head) <= 34 else body))]
    return "\n".join([*lines, *(["", footer] if footer else [])])


def _convert(flag: Flag, given: Given) -> Any:
    """The value of one option.  Raises ValueError with a sentence."""
    texts, name = given.texts, _name(given)
    if flag.kind == "list":
        if not texts:
            raise ValueError(f"{name} needs at least one value")
        return None if flag.optional and [text.lower() for text in texts] in (["none"], ["null"]) else list(texts)
    if flag.kind == "bool" and not texts:
        return not given.negated
    if not texts and flag.alone:
        return flag.alone
    if len(texts) != 1:
        raise ValueError(f"{name} needs a value" if not texts else f"{name} takes one value, not {len(texts)}")
    text = texts[0]
    if flag.optional and text.lower() in _NONE:
        return None
    if flag.choices and text not in flag.choices:
        near = difflib.get_close_matches(text, flag.choices, n=1)
        raise ValueError(
            f"{name} {text!r} is unknown: "
            + (f"did you mean {near[0]}?" if near else f"it is one of {', '.join(flag.choices)}")
        )
    value = _read(flag.kind, text, name)
    return value != given.negated if flag.kind == "bool" else value


def _read(kind: str, text: str, name: str) -> Any:
    if kind == "bool":
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"{name} {text!r} is neither true nor false")
        return text.lower() in _TRUE
    if kind == "dict":
        return _read_dict(text, name)
    reader, complaint = _READERS[kind]
    try:
        return reader(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} {complaint}") from None


def _read_dict(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON ({error}): write it as '{{\"key\": value}}'") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} {text!r} is no JSON object: write it as '{{\"key\": value}}'")
    return value


def _following(argv: Sequence[str]) -> list[str]:
    values = []
    for text in argv:
        if _is_flag(text):
            break
        values.append(text)
    return values


def _is_flag(text: str) -> bool:
    """`--name`, perhaps with `=` and a value; neither `-1` nor a sentence that begins with dashes, which are values."""
    return re.match(r"--[A-Za-z][\w-]*(=|$)", text) is not None


def _normal(key: str) -> str:
    return key.replace("-", "_")


def _name(given: Given) -> str:
    return given.key if given.where else f"--{given.key}"


def _place(given: Given) -> str:
    return f"{given.where}: " if given.where else ""


def _value_name(flag: Flag) -> str:
    if flag.choices and len(" ".join(flag.choices)) < 24:
        return f" {{{','.join(flag.choices)}}}"
    if flag.alone:
        return " [TEXT]"
    return {"bool": "", "int": " N", "float": " X", "dict": " JSON", "list": " TEXT ..."}.get(flag.kind, " TEXT")
