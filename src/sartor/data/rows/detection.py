"""Says what a data set's rows are, from all of them, and how they are read.

What comes in: a data set and the options.  What goes out: a `Reading`.  What it keeps true: what most rows are is
decided once; a row that is something else is told, never read as what it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import OUR_COLUMNS, is_readable, place_of
from sartor.data.rows.formats import WEIGHT_COLUMN, Reading
from sartor.data.rows.kinds import Found, Kind, first_readable, kind_of, kinds_of_dataset, kinds_of_rows
from sartor.data.rows.mapping import check_mapping, columns_of, suggest
from sartor.data.rows.shapes import ALPACA_COLUMNS
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, RowFormat

if TYPE_CHECKING:
    import datasets

FormattingFunction = Callable[[dict[str, Any]], str]

TOKEN_COLUMNS = (
    "input_ids",
    "labels",
    "completion_mask",
    "assistant_masks",
    "attention_mask",
    "position_ids",
    "seq_lengths",
    "weights",
)
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
ROWS_OF_A_STREAM = 64
"""Rows by which a stream is judged: as many as are read ahead anyway."""

_READINGS = {
    Kind.PROMPT_COMPLETION: (RowFormat.PROMPT_COMPLETION, "completion", "prompt"),
    Kind.MESSAGES_PROMPT_COMPLETION: (RowFormat.CONVERSATIONAL_PROMPT_COMPLETION, "completion", "prompt"),
    Kind.MESSAGES: (RowFormat.MESSAGES, "messages", None),
    Kind.CONVERSATIONS: (RowFormat.MESSAGES, "conversations", None),
    Kind.ALPACA: (RowFormat.CONVERSATIONAL_PROMPT_COMPLETION, "output", "instruction"),
}
"""Format, column of what is trained by default, column of the prompt."""


def recognise(
    dataset: datasets.Dataset | datasets.IterableDataset,
    settings: DataSettings,
    *,
    name: str,
    formatting_func: FormattingFunction | None = None,
) -> tuple[list[str], Reading]:
    """The columns of a data set, and how its rows are read.

    In this order: `input_ids` (tokenized already), `formatting_func`, `--map`, and then what most rows are by their
    filled columns (see `kinds`).  Of a stream the first rows are looked at.

    Raises:
        DataError: there are no rows, none could be read, or the columns mean nothing to us; the last shows a row and
            suggests a mapping.
        ConfigurationError: options that do not fit such rows.
    """
    import datasets

    is_stream = isinstance(dataset, datasets.IterableDataset)
    sample = list(islice(iter(dataset), ROWS_OF_A_STREAM)) if is_stream else []
    row = first_readable(sample if is_stream else dataset)
    if row is None:
        _refuse_unreadable(sample if is_stream else dataset, name)
        raise DataError(f"{name} data: there are no rows.")
    columns: list[str] = dataset.column_names or list(dict.fromkeys(column for some in sample for column in some))

    def count() -> list[Found]:
        text_column = settings.dataset_text_field
        if is_stream:
            return kinds_of_rows(sample, text_column, name)
        return kinds_of_dataset(dataset, text_column, name)

    reading = _reading(columns, row, settings, name, formatting_func, count)
    _check_losses(reading, settings, name)
    return columns, _with_rest(reading, columns, settings)


def _refuse_unreadable(rows: Any, name: str) -> None:
    """Raise one error for rows of which none could be read."""
    problems, num_rows = ProblemLog(), 0
    for num_rows, row in enumerate(rows, 1):
        is_readable(row, place_of(row, num_rows - 1, name), problems)
    problems.raise_if_any(f"{name} data", num_rows)


def _reading(
    columns: Sequence[str],
    row: Mapping[str, Any],
    settings: DataSettings,
    name: str,
    formatting_func: FormattingFunction | None,
    count: Callable[[], list[Found]],
) -> Reading:
    if "image" in columns or "images" in columns:
        raise DataError(f"{name} data: the column image(s) cannot be trained on: only text is supported. Remove it.")
    if "input_ids" in columns:
        return _tokenized(settings, formatting_func)
    if formatting_func is not None:
        has_both = "prompt" in columns and "completion" in columns
        if settings.completion_only_loss or (settings.completion_only_loss is None and has_both):
            raise ConfigurationError(
                "formatting_func makes one text of each row, so completion_only_loss cannot apply. Set "
                "completion_only_loss=False, or leave the function out and give prompt and completion."
            )
        return Reading(RowFormat.TEXT, "formatting_func's result", formatting_func=formatting_func)
    if settings.mapping:
        check_mapping(settings.mapping, [column for column in columns if column not in OUR_COLUMNS])
        return Reading(RowFormat.MESSAGES, "messages", mapping=settings.mapping)
    return _by_rows(columns, row, settings, name, count())


def _tokenized(settings: DataSettings, formatting_func: object) -> Reading:
    notes = []
    if formatting_func is not None:
        notes.append("formatting_func is not called: the rows are tokenized already (they have input_ids).")
    if settings.mapping:
        notes.append("--map is not used: the rows are tokenized already (they have input_ids).")
    return Reading(RowFormat.TOKENIZED, "input_ids", notes=tuple(notes), kind=Kind.TOKENIZED)


def _by_rows(
    columns: Sequence[str], row: Mapping[str, Any], settings: DataSettings, name: str, found: Sequence[Found]
) -> Reading:
    """The reading of what most rows are."""
    text_column = settings.dataset_text_field
    if not found:
        # None is filled: each is then told what it lacks of what the columns are meant to be.
        kind = kind_of(columns, is_messages=False, text_column=text_column)
        if kind is None:
            raise DataError(_nothing_known(row, settings, name))
    else:
        kind = found[0].kind
    form, body, prompt = _READINGS.get(kind, (RowFormat.TEXT, text_column, None))
    notes: tuple[str, ...] = ()
    if kind is Kind.ALPACA:
        notes = ("Alpaca's columns are read as a prompt (instruction and input) and its completion (output).",)
    elif kind is Kind.CONVERSATIONS:
        notes = ("ShareGPT's conversations are read as messages: human is the user, gpt the assistant.",)
    elif kind is Kind.TEXT and {"instruction", "output"} <= set(columns):
        notes = (
            f"The column {text_column} is trained as it is; without it, instruction and output would be read as "
            "conversations.",
        )
    return Reading(
        form,
        body,
        prompt,
        notes=notes,
        kind=kind,
        disagreement=_disagreement(found) if len(found) > 1 else "",
        text_column=text_column,
    )


def _disagreement(found: Sequence[Found]) -> str:
    counted = ", ".join(f"{entry.num_rows:,} are {entry.kind} (first {entry.first})" for entry in found)
    return f"Rows differ: {counted}. Give each format as a source of its own, or convert the rows to one."


def _nothing_known(row: Mapping[str, Any], settings: DataSettings, name: str) -> str:
    shown = {column: value for column, value in row.items() if column not in OUR_COLUMNS}
    return (
        f"{name} data: nothing says what to train on. The columns are {', '.join(shown)}; known are messages, "
        f"prompt + completion, {settings.dataset_text_field} (dataset_text_field), conversations, instruction + output "
        "and input_ids.\n" + suggest(list(shown), shown)
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
        used.update(TOKEN_COLUMNS)
    if reading.kind is Kind.CONVERSATIONS:
        used.add("system")
    if reading.kind is Kind.ALPACA:
        used.update(ALPACA_COLUMNS)
    has_row_weights = WEIGHT_COLUMN in columns and WEIGHT_COLUMN not in used
    used.add(WEIGHT_COLUMN)
    # Where rows differ, the columns of the others are needed to tell what they are.
    left_out = () if reading.formatting_func or reading.disagreement else columns
    unused = tuple(column for column in left_out if column not in used)
    checked = tuple(column for column in ("position_ids",) if column in columns and column in used)
    notes = reading.notes
    if has_row_weights:
        notes += (f"The column {WEIGHT_COLUMN} is what each row weighs in the loss.",)
    if unused or checked:
        notes += (f"Columns that are not used: {', '.join((*unused, *checked))}.",)
    return replace(
        reading,
        needs_assistant=settings.assistant_only_loss and reading.format is RowFormat.MESSAGES,
        has_row_weights=has_row_weights,
        unused_columns=unused,
        notes=notes,
    )
