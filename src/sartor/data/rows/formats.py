"""Turns rows into one shape, checked one by one.

What comes in: rows, and how they are to be read (see `detection`).  What goes out: `TrainingRow`s, or problems that
name their row. What it keeps true: a row is either converted whole or noted as a problem; none is skipped, repaired
or guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sartor.data.reading.problems import BadRow, ProblemLog, excerpt
from sartor.data.reading.tables import OUR_COLUMNS
from sartor.data.rows.kinds import Kind, kind_of_row
from sartor.data.rows.mapping import ROLES, Pairs, columns_of, fill
from sartor.data.rows.shapes import alpaca_messages, message_of_sharegpt, with_system
from sartor.records import RowFormat

Message = dict[str, Any]
Columns = Mapping[str, Any]
T = TypeVar("T")

WEIGHT_COLUMN = "weight"
LARGEST_WEIGHT = 1e15
"""Products of two weights, and sums of many of these, are 32-bit numbers; so are those of the smallest, 1e-15."""
RESERVED_KEYWORDS = frozenset(
    [
        "conversation",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "return_dict",
        "return_assistant_tokens_mask",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "tokenizer_kwargs",
        "sanitize_control_tokens",
        "messages",
    ]
)
"""Keywords of the rendering that a row's `chat_template_kwargs` may not set: they are ours, not the template's."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row in the shape that is encoded.

    `body` is what is trained by default: the messages of a conversation, the text, or the completion, with `prompt`
    before it.
    """

    where: str
    body: list[Message] | str
    prompt: list[Message] | str | None = None
    tools: Any = None
    template_keywords: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    """What the row's targets weigh in the loss, besides what their messages do; 0: the row is left out."""

    @property
    def messages(self) -> list[Message]:
        """All messages of a conversation, those of its prompt first; none of a row of text."""
        if not isinstance(self.body, list):
            return []
        return self.prompt + self.body if isinstance(self.prompt, list) else self.body


@dataclass(frozen=True, slots=True)
class Reading:
    """How a data set's rows are read: decided once, from all its columns."""

    format: RowFormat
    body_column: str
    prompt_column: str | None = None
    mapping: Pairs = ()
    formatting_func: Callable[[dict[str, Any]], str] | None = None
    needs_assistant: bool = False
    """Whether a conversation without an assistant message is a problem, because nothing of it would be trained."""
    has_row_weights: bool = False
    """Whether the column `weight` is what each row weighs, and nothing else."""
    unused_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: Kind | None = None
    """What a row's columns are, where they say it; None: told by options."""
    disagreement: str = ""
    """Where not all rows are of this kind: how many are of which, and where the first of each stands."""
    text_column: str = "text"
    """The column whose text would be trained."""

    @property
    def is_conversational(self) -> bool:
        """Whether rows are rendered by a chat template."""
        return self.format in (RowFormat.MESSAGES, RowFormat.CONVERSATIONAL_PROMPT_COMPLETION)


def convert(row: Columns, where: str, reading: Reading, problems: ProblemLog) -> TrainingRow | None:
    """One row in the shape that is encoded; None where it has a problem, which is then in `problems`."""

    def noted(read: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return read(*arguments)
        except BadRow as error:
            problems.add(error.kind, where, str(error), _without_ours(row))
            return None

    if reading.disagreement and not noted(_is_of_kind, row, reading):
        return None
    body: list[Message] | str | None
    prompt: list[Message] | str | None = None
    if reading.formatting_func is not None:
        body = noted(_formatted, row, where, reading.formatting_func)
    elif reading.mapping:
        body = noted(_mapped, row, reading)
    elif reading.kind is Kind.ALPACA:
        messages = noted(_alpaca, row) or []
        body, prompt = messages[-1:], messages[:-1]
    else:
        read: Callable[..., Any] = _messages_of if reading.is_conversational else _text_of
        body = noted(read, row, reading, reading.body_column)
        if reading.prompt_column is not None:
            prompt = noted(read, row, reading, reading.prompt_column)
            body = None if prompt is None else body
    converted = None
    if isinstance(body, str):
        converted = TrainingRow(where, body, prompt)
    elif body:
        converted = noted(_conversation, row, where, reading, body, prompt)
    weight = noted(_weight_of, row) if reading.has_row_weights else 1.0
    if converted is None or weight is None:
        return None
    return converted if weight == 1 else replace(converted, weight=weight)


def weight_problem(value: object) -> str | None:
    """Why a value is no weight; None where it is one, or is left out (None)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is a {type(value).__name__}; a weight is a number from 0 on."
    if value != 0 and not 1 / LARGEST_WEIGHT <= value <= LARGEST_WEIGHT:  # nor is what is not a number
        return f"is {value}; a weight is 0, or a number between {1 / LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}."
    return None


def _without_ours(row: Columns) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in OUR_COLUMNS}


def _is_of_kind(row: Columns, reading: Reading) -> bool:
    """Whether the row is of the same kind as most; one that is of no kind lacks something, which is told later."""
    kind = kind_of_row(row, reading.text_column)
    if kind not in (None, reading.kind):
        raise BadRow("another format", f"it is {kind}. {reading.disagreement}")
    return True


def _weight_of(row: Columns) -> float:
    """The weight that stands in the row's column; a row without a value weighs 1."""
    weight = row.get(WEIGHT_COLUMN)
    problem = weight_problem(weight)
    if problem:
        raise BadRow(
            "bad weight",
            f"the column {WEIGHT_COLUMN!r} {problem} Rename or remove the column where it means something else.",
        )
    return 1.0 if weight is None else float(weight)


def _formatted(row: Columns, where: str, formatting_func: Callable[[dict[str, Any]], str]) -> str:
    """The text that the user's function makes of the row."""
    columns = _without_ours(row)
    try:
        text = formatting_func(columns)
    except Exception as error:
        error.add_note(f"formatting_func raised this for {where}: {excerpt(columns)}")
        raise
    if not isinstance(text, str):
        raise BadRow("formatting_func's result", f"it is a {type(text).__name__}; it must be one str for each row.")
    if not text.strip():
        raise BadRow("formatting_func's result", "it is empty.")
    return text


def _mapped(row: Columns, reading: Reading) -> list[Message]:
    """The messages that the mapping makes of the row."""
    for column in columns_of(reading.mapping):
        value = row.get(column)
        if value is None:
            raise BadRow("missing value", f"the column {column!r}, which --map uses, has no value here.")
        if not isinstance(value, (str, int, float)):
            kind = type(value).__name__
            raise BadRow("wrong type", f"the column {column!r}, which --map uses, holds a {kind}, no text.")
    return _checked([{"role": role, "content": fill(template, row)} for role, template in reading.mapping])


def _alpaca(row: Columns) -> list[Message]:
    """The messages of Alpaca's columns, of which the last is the completion."""
    return _checked(alpaca_messages(row))


def _text_of(row: Columns, reading: Reading, column: str) -> str:
    value = row.get(column)
    if value is None:
        raise BadRow("missing value", f"the column {column!r} has no value here.")
    if not isinstance(value, str):
        raise BadRow("wrong type", f"the column {column!r} holds a {type(value).__name__}, not text.")
    if not value.strip() and column != reading.prompt_column:
        raise BadRow("empty text", f"the column {column!r} is empty.")
    return value


def _messages_of(row: Columns, reading: Reading, column: str) -> list[Message]:
    messages = row.get(column)
    if messages is None:
        raise BadRow("missing value", f"the column {column!r} has no value here.")
    if not isinstance(messages, list):
        kind = type(messages).__name__
        raise BadRow("wrong type", f"the column {column!r} holds a {kind}, not a list of messages as it should.")
    if not messages:
        raise BadRow("no messages", f"the column {column!r} is an empty list.")
    converted = [message_of_sharegpt(message, number) for number, message in enumerate(messages, 1)]
    if reading.kind is Kind.CONVERSATIONS:
        converted = with_system(converted, row.get("system"))
    return _checked(converted)


def _conversation(
    row: Columns, where: str, reading: Reading, body: list[Message], prompt: list[Message] | None
) -> TrainingRow:
    """A row of checked messages, with what else the template is given."""
    if reading.needs_assistant and all(message["role"] != "assistant" for message in body):
        raise BadRow("no assistant message", "assistant_only_loss=True would train nothing of it.")
    keywords = _keywords_of(row)
    _check_tools(row.get("tools"))
    return TrainingRow(where, body, prompt, row.get("tools"), keywords)


def _check_tools(tools: Any) -> None:
    """Tools, which may be given as JSON text, must be a list."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRow("bad tools", f"the text in the column 'tools' is not JSON: {error}.") from error
    if tools is not None and not isinstance(tools, list):
        raise BadRow("bad tools", f"the column 'tools' holds a {type(tools).__name__}, not a list of tools.")


def _keywords_of(row: Columns) -> dict[str, Any]:
    """The row's own keywords for the template.  A None stands for a keyword that only other rows have."""
    keywords = row.get("chat_template_kwargs") or {}
    if not isinstance(keywords, dict):
        raise BadRow("wrong type", f"chat_template_kwargs is a {type(keywords).__name__}, not an object.")
    reserved = sorted(RESERVED_KEYWORDS.intersection(keywords))
    if reserved:
        raise BadRow("reserved keyword", f"chat_template_kwargs may not set {', '.join(reserved)}.")
    return {key: value for key, value in keywords.items() if value is not None}


def _checked(messages: list[Any]) -> list[Message]:
    """The messages, each of which can be rendered."""
    for number, message in enumerate(messages, 1):
        _check_message(message, number)
    return messages


def _check_message(message: Any, number: int) -> None:
    """See that message `number` (from 1) can be rendered."""
    if not isinstance(message, dict):
        kind = type(message).__name__
        raise BadRow("wrong type", f"message {number} is a {kind}, not an object with role and content.")
    role, content = message.get("role"), message.get("content")
    problem = weight_problem(message.get("weight"))
    if problem:
        raise BadRow("bad weight", f"the weight of message {number} ({role}) {problem}")
    if not isinstance(message.get("train", True), bool | None):
        kind = type(message["train"]).__name__
        raise BadRow("bad train", f"`train` of message {number} ({role}) is a {kind}; it must be true or false.")
    if role not in ROLES:
        said = "has no role" if role is None else f"has the role {role!r}"
        raise BadRow("unknown role", f"message {number} {said}; roles are {', '.join(ROLES)}.")
    if content is None:
        if role != "assistant" or not message.get("tool_calls"):
            raise BadRow("missing content", f"message {number} ({role}) has no content.")
    elif not isinstance(content, str):
        hint = " Only text is supported: write the content as one string." if isinstance(content, list) else ""
        kind = type(content).__name__
        raise BadRow("wrong type", f"the content of message {number} ({role}) is a {kind}.{hint}")
    elif not content.strip() and role in ("user", "assistant") and not message.get("tool_calls"):
        raise BadRow(f"empty {role} message", f"message {number} ({role}) has an empty content.")
