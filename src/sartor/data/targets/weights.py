"""What each token weighs in the loss: row weight times message weight.

What comes in: checked rows, their tokens, and which of them are trained.  What goes out: the same tokens with weights.
What it keeps true: a weight is never guessed: where it cannot be told to which message a token belongs, the row is a
problem; and a token that weighs 0 is not trained at all.

A row's weight stands in its column `weight`, a message's under its key `weight` (`"train": false` is 0); what is left
out is 1.  Worked example: a row of weight 2 whose answers weigh 1 and 0.5 gives 2 to each token of the first and 1 to
each of the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import WEIGHT_COLUMN, Message, Reading, TrainingRow, weight_problem
from sartor.data.targets.owners import Owners
from sartor.data.templates.rendering import tools_of
from sartor.data.tokens.table import TokenRows
from sartor.errors import ConfigurationError
from sartor.records import RowFormat

Weights = NDArray[np.float64]


def message_weight(message: Mapping[str, Any]) -> float:
    """What a checked message weighs: 0 where it says `"train": false`, else its `weight`, else 1."""
    if message.get("train") is False:
        return 0.0
    weight = message.get("weight")
    return 1.0 if weight is None else float(weight)


def has_weights(row: TrainingRow) -> bool:
    """Whether some message of a conversation weighs other than 1."""
    return any(("weight" in message or "train" in message) and message_weight(message) != 1 for message in row.messages)


class _Unplaced(Exception):
    """Where a message lies in its conversation's text cannot be told; says why."""


class Weigher:
    """Weighs the tokens of rows, and counts the rows that have weights."""

    def __init__(self, tokenizer: Any, *, assistant_only: bool, completion_only: bool) -> None:
        """What is never trained needs no weight.

        Args:
            assistant_only: whether only messages of the assistant are trained.
            completion_only: whether only the completion is trained of rows that have a prompt.
        """
        self._tokenizer = tokenizer
        self._owners = Owners(tokenizer)
        self._assistant_only = assistant_only
        self._completion_only = completion_only

    def weigh(
        self,
        encoded: TokenRows,
        rows: Sequence[TrainingRow],
        turns: Sequence[Sequence[int]] | None,
        problems: ProblemLog,
        tally: Counter[str],
    ) -> TokenRows:
        """The same rows with their weights; a problem for each row whose messages cannot be told apart.

        Args:
            encoded: the rows' tokens.
            rows: the rows.
            turns: for each token the number of its message, from 1, or 0 where it is of none; None: not known.
        """
        weighted = [number for number, row in enumerate(rows) if row.weight != 1 or has_weights(row)]
        if not weighted:
            return encoded
        weights = np.ones(encoded.num_tokens)
        for number in weighted:
            row, start, end = rows[number], encoded.offsets[number], encoded.offsets[number + 1]
            tally["weighted rows"] += row.weight != 0
            tally["rows of weight 0"] += row.weight == 0
            weights[start:end] = row.weight
            if row.weight and has_weights(row):
                try:
                    of_turns = None if turns is None else turns[number]
                    weights[start:end] *= self._of_messages(row, encoded.input_ids[start:end].tolist(), of_turns)
                except _Unplaced as error:
                    problems.add("weights cannot be placed", row.where, str(error), row.body)
        return encoded.weighted(weights.astype(np.float32))

    @staticmethod
    def of_tokens(row: Mapping[str, Any], tally: Counter[str]) -> NDArray[np.float32]:
        """Weights of a checked row that is tokenized already: of the row times those of its tokens."""
        given, of_row = row.get("weights"), row.get(WEIGHT_COLUMN)
        weights = np.ones(len(row["input_ids"])) if given is None else np.asarray(given, np.float64)
        weights = weights if of_row is None else weights * float(of_row)
        tally["weighted rows"] += bool((weights != 1).any() and weights.any())
        tally["rows of weight 0"] += not weights.any()
        return weights.astype(np.float32)

    def _of_messages(self, row: TrainingRow, ids: list[int], turns: Sequence[int] | None) -> Weights | float:
        """The message's weight for each token of a row."""
        messages = row.messages
        weights = [message_weight(message) for message in messages]
        if turns is not None:
            return np.array([1.0, *weights])[np.asarray(turns, np.int64)]
        spread = self._spread(row, messages, weights)
        changes = [number for number in range(1, len(spread)) if spread[number] != spread[number - 1]]
        if not changes:
            return spread[0]
        text, of_characters = self._of_characters(row, messages, weights, spread, changes)
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoding["input_ids"] != ids:
            raise _Unplaced("its text has other tokens than the row, so they cannot be weighed. " + _ADVICE)
        starts = [start for start, _ in encoding["offset_mapping"]]
        return of_characters[np.asarray(starts, np.int64)]

    def _of_characters(
        self, row: TrainingRow, messages: list[Message], weights: list[float], spread: list[float], changes: list[int]
    ) -> tuple[str, Weights]:
        """A conversation's text and the weight of each of its characters.

        Where the template rewrites what stands before a message, each character is traced to its message.
        """
        try:
            text, borders = self._borders(row, messages, changes)
        except _Unplaced:
            traced = self._owners.of(row)
            if traced is None:
                raise
            return traced[0], np.array(weights)[traced[1]]
        of_parts = np.array([spread[0], *(spread[number] for number in changes)])
        return text, of_parts[np.searchsorted(borders, np.arange(len(text)), "right")]

    def _spread(self, row: TrainingRow, messages: Sequence[Message], weights: Sequence[float]) -> list[float]:
        """Weights where messages that are not trained have that of the next one that is, so that fewer change.

        Worked example: system, user, answer of 0.5, user, answer of 1 become 0.5, 0.5, 0.5, 1, 1.
        """
        first = 0 if row.prompt is None or not self._completion_only else len(row.prompt)
        spread: list[float] = []
        following: float | None = None
        for number in reversed(range(len(messages))):
            is_trained = number >= first and (not self._assistant_only or messages[number]["role"] == "assistant")
            following = weights[number] if is_trained else following
            spread.append(1.0 if following is None else following)
        return spread[::-1]

    def _borders(self, row: TrainingRow, messages: list[Message], firsts: Sequence[int]) -> tuple[str, list[int]]:
        """The conversation's text, and the characters at which the messages of these numbers begin.

        A message begins where the text of those before it ends, provided that the template only adds to it.
        """
        if not self._tokenizer.is_fast:
            raise ConfigurationError(
                "Weights of messages need a fast tokenizer (one with tokenizer.json): this one cannot say where in a "
                "text its tokens are. Give weights to rows only."
            )
        text = self._rendered(row, messages)
        borders = []
        for first in firsts:
            try:
                before = self._rendered(row, messages[:first])
            except Exception:  # a template is a program and may raise what it likes
                before = None
            if before is None or not text.startswith(before):
                raise _Unplaced(
                    f"the chat template does not write its first {first} messages alone as it writes them where the "
                    f"conversation goes on, so where message {first + 1} begins cannot be told. {_ADVICE}"
                )
            borders.append(len(before))
        return text, borders

    def _rendered(self, row: TrainingRow, messages: list[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools_of(row), tokenize=False, **row.template_keywords
        )
        return text

    @staticmethod
    def notes(tally: Counter[str]) -> tuple[str, ...]:
        """What is worth saying about the rows that are in the tally."""
        notes = []
        if count := tally["weighted rows"]:
            notes.append(
                f"{count:,} rows have a weight other than 1, their own or a message's: the losses of their targets are "
                "multiplied by it."
            )
        if count := tally["rows of weight 0"]:
            notes.append(f"{count:,} rows have weight 0: nothing of them is trained, and they are left out.")
        return tuple(notes)


_ADVICE = "Give it as prompt + completion, a row for each answer, with the weight in the row's column `weight`."


def may_have_weights(reading: Reading, columns: Sequence[str], features: Mapping[str, Any] | None) -> bool:
    """Whether tokens of a stream may be weighted, as far as can be told before it is read.

    Where the columns say nothing of the messages' keys, they may.

    Args:
        features: types of the columns, where the stream knows them.
    """
    if reading.has_row_weights or reading.format is RowFormat.TOKENIZED:
        return reading.has_row_weights or "weights" in columns
    if not reading.is_conversational or reading.mapping:
        return False
    return any(
        _may_have_key((features or {}).get(column), "weight")
        for column in (reading.body_column, reading.prompt_column)
        if column is not None
    )


def _may_have_key(feature: Any, key: str) -> bool:
    """Whether a column of lists of objects may have this key in them."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return key in inner if isinstance(inner, dict) else True


def token_weights_problem(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the weights of a row that is tokenized already, whose `input_ids` are checked."""
    problem = weight_problem(row.get(WEIGHT_COLUMN))
    if problem:
        return f"the column {WEIGHT_COLUMN!r} {problem}"
    weights = row.get("weights")
    if weights is None:
        return None
    num_tokens = len(row["input_ids"])
    if not isinstance(weights, list) or len(weights) != num_tokens:
        return (
            f"weights has {len(weights) if isinstance(weights, list) else 0} entries; the row has {num_tokens} tokens."
        )
    for number, weight in enumerate(weights):
        problem = "is missing." if weight is None else weight_problem(weight)
        if problem:
            return f"number {number} (from 0) of weights {problem}"
    return None
