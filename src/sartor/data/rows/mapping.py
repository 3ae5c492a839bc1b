"""Makes conversations from columns of any names: `--map user="{question}" --map assistant="{answer}"`.

What comes in: pairs of a role and a template in which `{column}` stands for a column's value.  What goes out: a row's
messages, one per pair, in the pairs' order.  Braces that are meant are doubled, as in Python: `{{`.
"""

import difflib
import string
from collections.abc import Iterable, Mapping, Sequence

from sartor.data.reading.problems import excerpt
from sartor.errors import ConfigurationError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles a message can have."""

Pairs = tuple[tuple[str, str], ...]

_QUESTIONS = ("question", "instruction", "prompt", "query", "problem", "user", "human", "request", "input")
_REASONINGS = ("reasoning", "thinking", "thought", "rationale", "chain_of_thought", "cot", "reasoning_content")
_ANSWERS = ("answer", "response", "output", "completion", "solution", "assistant", "reply", "target", "final_answer")
_SYSTEMS = ("system", "system_prompt")
_TEXTS = ("content", "document", "article", "body", "story", "passage", "code")


def parse_mapping(entries: Iterable[str]) -> Pairs:
    """Pairs of role and template from `role=template` strings, in order.

    Worked example: `["user={question}", "assistant=<think>{reasoning}</think> {answer}"]` gives
    `(("user", "{question}"), ("assistant", "<think>{reasoning}</think> {answer}"))`.

    Raises:
        ConfigurationError: with everything that is wrong with any of them.
    """
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    for entry in entries:
        role, equals, template = entry.partition("=")
        if equals:
            pairs.append((role.strip(), template))
        else:
            problems.append(f'--map {entry!r} has no "=". Write it as role=template, such as user="{{question}}".')
    problems.extend(_problems_of(pairs))
    if problems:
        raise ConfigurationError(problems)
    return tuple(pairs)


def _problems_of(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Everything that is wrong with a mapping, whatever the data."""
    problems: list[str] = []
    for role, template in pairs:
        if role not in ROLES:
            close = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Roles are {', '.join(ROLES)}."
            problems.append(f"--map {role}={template!r}: {role!r} is no role. {hint}")
        problem = _template_problem(template)
        if problem:
            problems.append(f"--map {role}={template!r}: {problem}")
    if pairs and not problems and all(role != "assistant" for role, _ in pairs):
        problems.append('--map has no assistant: say what the answers are, such as --map assistant="{answer}".')
    return problems


def _template_problem(template: str) -> str:
    """What is wrong with a template, or nothing."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"{error}. Write a brace that is meant twice: {{{{ or }}}}."
    for _, name, format_spec, conversion in fields:
        if name == "":
            return "{} names no column. Write the column's name between the braces."
        if name is not None and (format_spec or conversion):
            return f"{{{name}}} has a format; only a column's name may stand between braces."
    if not template.strip():
        return "the template is empty."
    return ""


def columns_of(pairs: Pairs) -> list[str]:
    """The columns that the templates name, each once, in order."""
    names = [name for _, template in pairs for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return list(dict.fromkeys(names))


def check_mapping(pairs: Pairs, columns: Sequence[str]) -> None:
    """See that a mapping is sound, and that every column its templates name exists.

    Raises:
        ConfigurationError: what is wrong with it, or the columns there are.
    """
    problems = _problems_of(pairs)
    if problems:
        raise ConfigurationError(problems)
    missing = [name for name in columns_of(pairs) if name not in columns]
    if missing:
        close = [match for name in missing for match in difflib.get_close_matches(name, columns, n=1)]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ConfigurationError(
            f"--map names {', '.join(map(repr, missing))}, which the data does not have. "
            f"Its columns are {', '.join(columns)}.{hint}"
        )


def fill(template: str, row: Mapping[str, object]) -> str:
    """The template with its columns' values in place; the row has them all, as text or numbers."""
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            parts.append(str(row[name]))
    return "".join(parts)


def suggest(columns: Sequence[str], row: Mapping[str, object]) -> str:
    """What to do about columns that mean nothing to us: shows a row and suggests a mapping by the columns' names."""
    by_name = {column.lower(): column for column in columns}

    def first_of(names: Sequence[str], *taken: str | None) -> str | None:
        return next((by_name[name] for name in names if name in by_name and by_name[name] not in taken), None)

    question, answer = first_of(_QUESTIONS), first_of(_ANSWERS)
    lines = [f"  A row of it: {excerpt(row)}"]
    if question and answer:
        reasoning, context, system = first_of(_REASONINGS), first_of(("input", "context"), question), first_of(_SYSTEMS)
        asked = f"{{{question}}}\\n\\n{{{context}}}" if context else f"{{{question}}}"
        answered = f"<think>{{{reasoning}}}</think> {{{answer}}}" if reasoning else f"{{{answer}}}"
        flags = [f"--map system={_quoted('{' + system + '}')}"] if system else []
        flags += [f"--map user={_quoted(asked)}", f"--map assistant={_quoted(answered)}"]
        lines.append(f"  Perhaps this is meant: {' '.join(flags)}")
    elif first_of(_TEXTS):
        lines.append(f"  Perhaps this is meant: --dataset_text_field {first_of(_TEXTS)}")
    else:
        lines.append('  Say which columns are which: --map user="{...}" --map assistant="{...}"')
    lines.append("  In Python, dataset.map() or formatting_func= does the same.")
    return "\n".join(lines)


def _quoted(template: str) -> str:
    """The template as a shell takes it, a newline in the way that bash and zsh understand."""
    return f"$'{template}'" if "\\n" in template else f'"{template}"'
