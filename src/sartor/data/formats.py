"""Says what a data set's columns mean, and turns rows into one shape, checked one by one.

What comes in: a data set's columns and its rows.  What goes out: `TrainingRow`s, or problems that name their row.
What it keeps true: a row is either converted whole or noted as a problem; none is skipped, repaired or guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sartor.data.mapping import ROLES, Pairs, check_mapping, columns_of, fill, suggest
from sartor.data.problems import ProblemLog, excerpt
from sartor.data.tables import OUR_COLUMNS, WHERE_COLUMN
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, RowFormat

Message = dict[str, Any]
Columns = Mapping[str, Any]

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's `from` values mean in a chat template's words."""
TOKEN_COLUMNS = ("input_ids", "labels", "completion_mask", "assistant_masks")
WEIGHT_COLUMN = "weight"
LARGEST_WEIGHT = 1e15
"""Products of two weights, and sums of many of these, are 32-bit numbers; so are those of the smallest, 1e-15."""
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
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

    @property
    def is_conversational(self) -> bool:
        """Whether rows are rendered by a chat template."""
        return self.format in (RowFormat.MESSAGES, RowFormat.CONVERSATIONAL_PROMPT_COMPLETION)


def detect(
    columns: Sequence[str],
    first_row: Columns,
    settings: DataSettings,
    *,
    name: str,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> Reading:
    """Decide what the columns mean.

    In this order: `input_ids` (tokenized already), `formatting_func`, `--map`, `prompt` + `completion`, `messages`,
    `conversations`, the text column.  `first_row` only tells text from messages, and is shown where nothing fits.

    Raises:
        DataError: the columns mean nothing to us; shows a row and suggests a mapping.
        ConfigurationError: options that do not fit such rows.
    """
    if "image" in columns or "images" in columns:
        raise DataError(f"{name} data: the column image(s) cannot be trained on: only text is supported. Remove it.")
    if "input_ids" in columns:
        reading = _tokenized(columns, settings, formatting_func)
    elif formatting_func is not None:
        if settings.completion_only_loss or (settings.completion_only_loss is None and _has_both(columns)):
            raise ConfigurationError(
                "formatting_func makes one text of each row, so completion_only_loss cannot apply. Set "
                "completion_only_loss=False, or leave the function out and give prompt and completion."
            )
        reading = Reading(RowFormat.TEXT, "formatting_func's result", formatting_func=formatting_func)
    elif settings.mapping:
        check_mapping(settings.mapping, [column for column in columns if column != WHERE_COLUMN])
        reading = Reading(RowFormat.MESSAGES, "messages", mapping=settings.mapping)
    else:
        reading = _by_columns(columns, first_row, settings, name)
    _check_losses(reading, settings, name)
    return _with_rest(reading, columns, settings)


def _has_both(columns: Sequence[str]) -> bool:
    return "prompt" in columns and "completion" in columns


def _tokenized(columns: Sequence[str], settings: DataSettings, formatting_func: object) -> Reading:
    notes = []
    if formatting_func is not None:
        notes.append("formatting_func is not called: the rows are tokenized already (they have input_ids).")
    if settings.mapping:
        notes.append("--map is not used: the rows are tokenized already (they have input_ids).")
    return Reading(RowFormat.TOKENIZED, "input_ids", notes=tuple(notes))


def _by_columns(columns: Sequence[str], first_row: Columns, settings: DataSettings, name: str) -> Reading:
    if _has_both(columns):
        is_messages = isinstance(first_row["prompt"], list) or isinstance(first_row["completion"], list)
        kind = RowFormat.CONVERSATIONAL_PROMPT_COMPLETION if is_messages else RowFormat.PROMPT_COMPLETION
        return Reading(kind, "completion", prompt_column="prompt")
    for column in ("messages", "conversations"):
        if column in columns:
            return Reading(RowFormat.MESSAGES, column)
    if settings.dataset_text_field in columns:
        return Reading(RowFormat.TEXT, settings.dataset_text_field)
    shown = {column: value for column, value in first_row.items() if column != WHERE_COLUMN}
    raise DataError(
        f"{name} data: nothing says what to train on. The columns are {', '.join(shown)}; known are messages, "
        f"prompt + completion, {settings.dataset_text_field} (dataset_text_field), conversations and input_ids.\n"
        + suggest(list(shown), shown)
    )


def _check_losses(reading: Reading, settings: DataSettings, name: str) -> None:
    """Refuse options that could only be ignored for rows of this format."""
    if reading.format is RowFormat.TOKENIZED:
        return
    if settings.assistant_only_loss and not reading.is_conversational:
        raise ConfigurationError(
            f"assistant_only_loss=True needs conversations; the {name} data has {reading.format}. Leave it out, or "
            "give messages."
        )
    if settings.completion_only_loss and reading.prompt_column is None:
        raise ConfigurationError(
            f"completion_only_loss=True needs a prompt and a completion; the {name} data has {reading.format}. "
            + (
                "Use assistant_only_loss=True to train the answers only."
                if reading.is_conversational
                else "Leave it out."
            )
        )


def _with_rest(reading: Reading, columns: Sequence[str], settings: DataSettings) -> Reading:
    """The reading with the columns that nothing uses, and what to say about them."""
    used = {reading.body_column, reading.prompt_column, *OUR_COLUMNS, *columns_of(reading.mapping)}
    if reading.is_conversational:
        used.update(TEMPLATE_COLUMNS)
    if reading.format is RowFormat.TOKENIZED:
        used.update(TOKEN_COLUMNS, ("attention_mask", "seq_lengths", "weights"))
    has_row_weights = WEIGHT_COLUMN in columns and WEIGHT_COLUMN not in used
    used.add(WEIGHT_COLUMN)
    unused = tuple(column for column in columns if column not in used) if reading.formatting_func is None else ()
    notes = reading.notes
    if has_row_weights:
        notes += (f"The column {WEIGHT_COLUMN} is what each row weighs in the loss.",)
    if unused:
        notes += (f"Columns that are not used: {', '.join(unused)}.",)
    return Reading(
        reading.format,
        reading.body_column,
        reading.prompt_column,
        reading.mapping,
        reading.formatting_func,
        needs_assistant=settings.assistant_only_loss and reading.format is RowFormat.MESSAGES,
        has_row_weights=has_row_weights,
        unused_columns=unused,
        notes=notes,
    )


def convert(row: Columns, where: str, reading: Reading, problems: ProblemLog) -> TrainingRow | None:
    """One row in the shape that is encoded; None where it has a problem, which is then in `problems`."""
    check = RowCheck(row, where, reading, problems)
    if reading.formatting_func is not None:
        converted = check.formatted(reading.formatting_func)
    elif reading.mapping:
        converted = check.mapped()
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
        shown = {column: value for column, value in self._row.items() if column != WHERE_COLUMN}
        self._problems.add(kind, self._where, message, shown)

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
        columns = {column: value for column, value in self._row.items() if column != WHERE_COLUMN}
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
        return None if keywords is None else TrainingRow(self._where, body, prompt, self._row.get("tools"), keywords)

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
        converted = [self._converted(message) for message in messages]
        if not all(self._is_good(message, number) for number, message in enumerate(converted, 1)):
            return None
        return converted

    @staticmethod
    def _converted(message: Any) -> Any:
        """A message with `role` and `content`, where it has ShareGPT's `from` and `value`."""
        if not isinstance(message, dict) or "from" not in message or message.get("role") is not None:
            return message
        role = message["from"]
        rest = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
        return {"role": SHAREGPT_ROLES.get(role, role), "content": message.get("value"), **rest}

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
