"""Holds encoded rows against what the model can look up: its embedding, and its positions where those are a table.

What comes in: encoded rows with their places, before they are cut.  What goes out: a note of each that the model could
not compute, which else would be an IndexError in the middle of training, or on a GPU the end of the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.problems import ProblemLog
from sartor.data.tokens.table import TokenRows
from sartor.errors import ConfigurationError
from sartor.records import DataSettings


def check_rows(rows: TokenRows, places: Sequence[str], settings: DataSettings, problems: ProblemLog) -> None:
    """Note rows with an id or a label from `num_embeddings` on, and documents of more tokens than `num_positions`.

    Example: an embedding of 100 rows, and a row [7, 100]: its token 1 has the id 100, which is one too large.
    """
    if settings.num_embeddings is not None:
        for name, values in (("id", rows.input_ids), ("label", rows.labels)):
            _check_values(rows, name, values, places, settings.num_embeddings, problems)
    if settings.num_positions is not None:
        _check_lengths(rows, places, settings.num_positions, settings.max_length, problems)


def _check_values(
    rows: TokenRows,
    name: str,
    values: NDArray[np.int32],
    places: Sequence[str],
    num_embeddings: int,
    problems: ProblemLog,
) -> None:
    is_outside = values >= num_embeddings
    if not is_outside.any():
        return
    for number in np.flatnonzero(rows.count(is_outside)).tolist():
        start = int(rows.offsets[number])
        token = int(np.argmax(is_outside[start:]))
        problems.add(
            f"{name} outside the vocabulary",
            places[number],
            f"its token {token} has the {name} {int(values[start + token]):,}, and the model's embedding has "
            f"{num_embeddings:,} rows (ids 0 to {num_embeddings - 1:,}). Use the tokenizer that belongs to the model, "
            "or give the model rows for new tokens: model.resize_token_embeddings(len(tokenizer)).",
        )


def _check_lengths(
    rows: TokenRows, places: Sequence[str], num_positions: int, max_length: int | None, problems: ProblemLog
) -> None:
    """Documents count as they will be cut; those of a packed block begin anew at position 0."""
    most = rows.num_tokens if max_length is None else max_length
    if most <= num_positions:
        return
    for number, length in enumerate(rows.lengths.tolist()):
        documents = [length] if rows.documents is None else rows.documents[number]
        longest = min(most, max(documents, default=0))
        if longest > num_positions:
            problems.add(
                "more tokens than positions",
                places[number],
                f"a document of it has {longest:,} tokens, and the model has {num_positions:,} positions. Set "
                f"max_length={num_positions}, or split the row.",
            )


def check_blocks(settings: DataSettings) -> None:
    """See that a block of running text has no more tokens than there are positions.

    Raises:
        ConfigurationError: it has.
    """
    positions, length = settings.num_positions, settings.max_length
    if positions is None or length is None or not settings.packing or settings.packing_strategy != "wrapped":
        return
    if length > positions:
        raise ConfigurationError(
            f"packing_strategy='wrapped' makes texts of max_length={length:,} tokens, and the model has {positions:,} "
            f"positions: set max_length={positions}, or another packing_strategy."
        )
