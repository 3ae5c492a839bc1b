"""Turns rows into one shape, checked one by one.

What comes in: rows, and how they are to be read (see `detection`).  What goes out: `TrainingRow`s, or problems that
name their row. What it keeps true: a row is either converted whole or noted as a problem; none is skipped, repaired
or guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sartor.data.reading.problems import ProblemLog, excerpt
from sartor.data.reading.tables import OUR_COLUMNS
from sartor.data.rows.kinds import Kind, kind_of_row
from sartor.data.rows.mapping import ROLES, Pairs, columns_of, fill
from sartor.data.rows.shapes import BadShape, alpaca_messages, message_of_sharegpt, with_system
from sartor.records import RowFormat

Message = dict[str, Any]
Columns = Mapping[str, Any]

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
    check = RowCheck(row, where, reading, problems)
    if reading.disagreement and not check.is_of_kind():
        return None
    if reading.formatting_func is not None:
        converted = check.formatted(reading.formatting_func)
    elif reading.mapping:
        converted = check.mapped()
    elif reading.kind is Kind.ALPACA:
        converted = check.alpaca()
    elif reading.format in (RowFormat.PROMPT_COMPLETION, RowFormat.TEXT):
        converted = check.text()
    else:
        converted = check.conversation()
    return check.weighted(converted) if reading.has_row_weights else converted


def weight_problem(value: object) -> str | None:
    """Why a value is no weight; None where it is one, or is left out (None)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is a {type(value).__name__}; a weight is a number from 0 on."
    if value != 0 and not 1 / LARGEST_WEIGHT <= value <= LARGEST_WEIGHT:  # nor is what is not a number
        return f"is {value}; a weight is 0, or a number between {1 / LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}."
    return None


class RowCheck:
    """Checks and converts one row; every way out notes a problem or returns the row whole."""

    def __init__(self, row: Columns, where: str, reading: Reading, problems: ProblemLog) -> None:
        self._row = row
        self._where = where
        self._reading = reading
        self._problems = problems

    def _note(self, kind: str, message: str) -> None:
        shown = {column: value for column, value in self._row.items() if column not in OUR_COLUMNS}
        self._problems.add(kind, self._where, message, shown)

    def is_of_kind(self) -> bool:
        """Whether the row is of the same kind as most; one that is of no kind lacks something, which is told later."""
        kind = kind_of_row(self._row, self._reading.text_column)
        if kind in (None, self._reading.kind):
            return True
        self._note("another format", f"it is {kind}. {self._reading.disagreement}")
        return False

    def alpaca(self) -> TrainingRow | None:
        """The prompt and the completion of Alpaca's columns."""
        try:
            messages = alpaca_messages(self._row)
        except BadShape as error:
            self._note(error.kind, str(error))
            return None
        if not all(self._is_good(message, number) for number, message in enumerate(messages, 1)):
            return None
        return self._row_of(messages[-1:], messages[:-1], is_checked=True)

    def weighted(self, converted: TrainingRow | None) -> TrainingRow | None:
        """The converted row with the weight that stands in its column; one without a value weighs 1."""
        weight = self._row.get(WEIGHT_COLUMN)
        problem = weight_problem(weight)
        if problem:
            self._note(
                "bad weight",
                f"the column {WEIGHT_COLUMN!r} {problem} Rename or remove the column where it means something else.",
            )
            return None
        return converted if converted is None or weight is None else replace(converted, weight=float(weight))

    def formatted(self, formatting_func: Callable[[dict[str, Any]], str]) -> TrainingRow | None:
        """The text that the user's function makes of the row."""
        columns = {column: value for column, value in self._row.items() if column not in OUR_COLUMNS}
        try:
            text = formatting_func(columns)
        except Exception as error:
            error.add_note(f"formatting_func raised this for {self._where}: {excerpt(columns)}")
            raise
        if not isinstance(text, str):
            self._note("formatting_func's result", f"it is a {type(text).__name__}; it must be one str for each row.")
            return None
        if not text.strip():
            self._note("formatting_func's result", "it is empty.")
            return None
        return TrainingRow(self._where, text)

    def mapped(self) -> TrainingRow | None:
        """The messages that the mapping makes of the row."""
        for column in columns_of(self._reading.mapping):
            value = self._row.get(column)
            if value is None:
                self._note("missing value", f"the column {column!r}, which --map uses, has no value here.")
                return None
            if not isinstance(value, (str, int, float)):
                kind = type(value).__name__
                self._note("wrong type", f"the column {column!r}, which --map uses, holds a {kind}, no text.")
                return None
        messages = [{"role": role, "content": fill(template, self._row)} for role, template in self._reading.mapping]
        return self._row_of(messages, None)

    def text(self) -> TrainingRow | None:
        """A row of plain text, or of prompt and completion as text."""
        reading = self._reading
        body = self._text_of(reading.body_column, may_be_empty=False)
        prompt = None if reading.prompt_column is None else self._text_of(reading.prompt_column, may_be_empty=True)
        if body is None or (reading.prompt_column is not None and prompt is None):
            return None
        return TrainingRow(self._where, body, prompt)

    def _text_of(self, column: str, *, may_be_empty: bool) -> str | None:
        value = self._row.get(column)
        if isinstance(value, str):
            if value.strip() or may_be_empty:
                return value
            self._note("empty text", f"the column {column!r} is empty.")
        elif value is None:
            self._note("missing value", f"the column {column!r} has no value here.")
        else:
            self._note("wrong type", f"the column {column!r} holds a {type(value).__name__}, not text.")
        return None

    def conversation(self) -> TrainingRow | None:
        """A row of messages, or of prompt and completion as messages."""
        reading = self._reading
        body = self._messages_of(reading.body_column)
        prompt = None if reading.prompt_column is None else self._messages_of(reading.prompt_column)
        if body is None or (reading.prompt_column is not None and prompt is None):
            return None
        return self._row_of(body, prompt, is_checked=True)

    def _row_of(
        self, body: list[Message], prompt: list[Message] | None, *, is_checked: bool = False
    ) -> TrainingRow | None:
        if not is_checked and not all(self._is_good(message, number) for number, message in enumerate(body, 1)):
            return None
        if self._reading.needs_assistant and all(message["role"] != "assistant" for message in body):
            self._note("no assistant message", "assistant_only_loss=True would train nothing of it.")
            return None
        keywords = self._keywords()
        if keywords is None or not self._has_good_tools():
            return None
        return TrainingRow(self._where, body, prompt, self._row.get("tools"), keywords)

    def _has_good_tools(self) -> bool:
        """Whether tools, which may be given as JSON text, are a list."""
        tools = self._row.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except ValueError as error:
                self._note("bad tools", f"the text in the column 'tools' is not JSON: {error}.")
                return False
        if tools is None or isinstance(tools, list):
            return True
        self._note("bad tools", f"the column 'tools' holds a {type(tools).__name__}, not a list of tools.")
        return False

    def _messages_of(self, column: str) -> list[Message] | None:
        messages = self._row.get(column)
        if messages is None:
            self._note("missing value", f"the column {column!r} has no value here.")
            return None
        if not isinstance(messages, list):
            kind = type(messages).__name__
            self._note("wrong type", f"the column {column!r} holds a {kind}, not a list of messages as it should.")
            return None
        if not messages:
            self._note("no messages", f"the column {column!r} is an empty list.")
            return None
        try:
            converted = [message_of_sharegpt(message, number) for number, message in enumerate(messages, 1)]
            if self._reading.kind is Kind.CONVERSATIONS:
                converted = with_system(converted, self._row.get("system"))
        except BadShape as error:
            self._note(error.kind, str(error))
            return None
        if not all(self._is_good(message, number) for number, message in enumerate(converted, 1)):
            return None
        return converted

    def _is_good(self, message: Any, number: int) -> bool:
        """Whether message `number` (from 1) can be rendered; notes why not."""
        if not isinstance(message, dict):
            kind = type(message).__name__
            self._note("wrong type", f"message {number} is a {kind}, not an object with role and content.")
            return False
        role, content = message.get("role"), message.get("content")
        problem = weight_problem(message.get("weight"))
        if problem:
            self._note("bad weight", f"the weight of message {number} ({role}) {problem}")
            return False
        if not isinstance(message.get("train", True), bool | None):
            kind = type(message["train"]).__name__
            self._note("bad train", f"`train` of message {number} ({role}) is a {kind}; it must be true or false.")
            return False
        if role not in ROLES:
            said = "has no role" if role is None else f"has the role {role!r}"
            self._note("unknown role", f"message {number} {said}; roles are {', '.join(ROLES)}.")
            return False
        if content is None:
            if role == "assistant" and message.get("tool_calls"):
                return True
            self._note("missing content", f"message {number} ({role}) has no content.")
            return False
        if not isinstance(content, str):
            hint = " Only text is supported: write the content as one string." if isinstance(content, list) else ""
            self._note("wrong type", f"the content of message {number} ({role}) is a {type(content).__name__}.{hint}")
            return False
        if not content.strip() and role in ("user", "assistant") and not message.get("tool_calls"):
            self._note(f"empty {role} message", f"message {number} ({role}) has an empty content.")
            return False
        return True

    def _keywords(self) -> dict[str, Any] | None:
        """The row's own keywords for the template.  A None stands for a keyword that only other rows have."""
        keywords = self._row.get("chat_template_kwargs") or {}
        if not isinstance(keywords, dict):
            self._note("wrong type", f"chat_template_kwargs is a {type(keywords).__name__}, not an object.")
            return None
        reserved = sorted(RESERVED_KEYWORDS.intersection(keywords))
        if reserved:
            self._note("reserved keyword", f"chat_template_kwargs may not set {', '.join(reserved)}.")
            return None
        return {key: value for key, value in keywords.items() if value is not None}
