"""Weighted data where a user's own loss or collator decides what is trained.

In: prepared data sets.  What it keeps true: weights are honoured or refused, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers.trainer_utils import has_length

from sartor.errors import ConfigurationError
from sartor.hf.base import SessionTrainer


def refuse_with_own_loss(trainer: SessionTrainer, data: Any) -> None:
    """Refuse weighted rows where an own loss would get them without their weights.

    An own data_collator gets them, as the column `weights`, with `remove_unused_columns=False`, and is trusted with
    them.

    Args:
        data: a prepared data set, several by name, or None.  A stream's rows are looked at when they come.

    Raises:
        ConfigurationError: with what to do.
    """
    if isinstance(data, Mapping):
        for part in data.values():
            refuse_with_own_loss(trainer, part)
    elif data is not None and has_length(data) and "weights" in (data.column_names or ()):
        _refuse(trainer)


def refuse_weighted_rows(trainer: SessionTrainer, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for rows of a stream.

    Raises:
        ConfigurationError: one of them is weighted.
    """
    if any(row.get("weights") is not None for row in rows):
        _refuse(trainer)


def _refuse(trainer: SessionTrainer) -> None:
    if trainer.uses_padded_batches and (trainer.args.remove_unused_columns or not trainer.has_own_collator):
        raise ConfigurationError(
            "rows or messages have weights, and an own loss or data_collator decides what they count: it would not see "
            "them. Remove the weights (rows' column `weight`, messages' keys `weight`), or weigh in a data_collator of "
            "your own: with remove_unused_columns=False it gets each row's `weights`, a number per token."
        )
