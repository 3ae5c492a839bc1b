"""One row for each answer: the messages up to it, of which the answer is trained.

What comes in: checked conversations.  What goes out: rows of prompt and completion.  What it keeps true: every answer
that is to be trained is the last message of exactly one row, so that a template writes it as it does when it is
generated; a conversation without such an answer stays a row, which is then found to train nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sartor.data.rows.formats import TrainingRow
from sartor.data.targets.weights import message_weight


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether a message is one to train: weight 0, or `"train": false`, leaves an answer out."""
    return message["role"] == "assistant" and message_weight(message) != 0


def unrolled(rows: Iterable[TrainingRow], tally: Counter[str]) -> list[TrainingRow]:
    """Rows of prompt and completion, in order; counts them in `tally`.

    Worked example: user, answer, user, answer gives user + answer, and user, answer, user + answer.  Answers in a
    row's own prompt stay context.
    """
    result: list[TrainingRow] = []
    for row in rows:
        before, body = row.prompt or [], row.body
        assert isinstance(before, list)
        assert isinstance(body, list)
        parts = [
            replace(row, prompt=before + body[:number], body=[message])
            for number, message in enumerate(body)
            if is_trained(message)
        ]
        tally["unrolled conversations"] += 1
        tally["unrolled answers"] += len(parts)
        result += parts or [replace(row, prompt=before + body, body=[])]
    return result
