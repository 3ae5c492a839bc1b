"""Rows that are tokenized already: checked, and read as they are.

What comes in: rows with `input_ids`, and perhaps labels, masks, documents and weights.  What goes out: their tokens, or
what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sartor.data.encoding.limits import check_rows
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import WHERE_COLUMN, batches_of
from sartor.data.rows.detection import TOKEN_COLUMNS
from sartor.data.targets.weights import token_weights_problem
from sartor.data.tokens.table import TokenRows
from sartor.records import IGNORE_INDEX, DataSettings

Row = Mapping[str, Any]

_ROWS_PER_BATCH = 1_000


def read_tokenized(
    rows: Sequence[Row], places: Sequence[str], problems: ProblemLog, *, completion_only: bool
) -> tuple[TokenRows, list[Row], list[str]]:
    """The tokens of rows that have no problem, with these rows and their places; problems of the others are noted.

    Their labels are as they are, or made from their masks.

    Args:
        completion_only: whether `completion_mask` counts.
    """
    good, kept_places = [], []
    for row, where in zip(rows, places, strict=True):
        problem = token_problem(row)
        if problem is None:
            good.append(row)
            kept_places.append(where)
        else:
            problems.add(problem[0], where, problem[1], row)
    documents = None
    if any("seq_lengths" in row for row in good[:1]):
        documents = [row["seq_lengths"] or [len(row["input_ids"])] for row in good]
    ids = [row["input_ids"] for row in good]
    labels = [_labels_of(row, completion_only=completion_only) for row in good]
    return TokenRows.from_lists(ids, labels, documents), good, kept_places


def _labels_of(row: Row, *, completion_only: bool) -> list[int]:
    if row.get("labels") is not None:
        labels: list[int] = row["labels"]
        return labels
    masks = [row["assistant_masks"]] if row.get("assistant_masks") is not None else []
    if completion_only and row.get("completion_mask") is not None:
        masks.append(row["completion_mask"])
    return [token if all(flags) else IGNORE_INDEX for token, *flags in zip(row["input_ids"], *masks, strict=True)]


def check_unprepared(dataset: Any, settings: DataSettings, name: str) -> None:
    """Look at rows that are trained as they are (`skip_prepare_dataset`).

    All rows that can be read now: not those of a stream, nor what a function makes when it is asked.

    Raises:
        DataError: rows that cannot be trained on, all of them in one error.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    if "input_ids" not in dataset.column_names:
        return
    wanted = [column for column in dataset.column_names if column in (*TOKEN_COLUMNS, WHERE_COLUMN)]
    problems = ProblemLog()
    for rows, places in batches_of(dataset.with_format(None).select_columns(wanted), _ROWS_PER_BATCH, name):
        tokens, _, kept = read_tokenized(rows, places, problems, completion_only=False)
        check_rows(tokens, kept, settings, problems)
    problems.raise_if_any(f"{name} data", len(dataset))


def token_problem(row: Row) -> tuple[str, str] | None:
    """What is wrong with a tokenized row: kind and message."""
    ids = row.get("input_ids")
    if not isinstance(ids, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in ids):
        return "bad token ids", "input_ids must be a list of token ids, integers from 0 on."
    if not ids:
        return "no tokens", "input_ids is empty."
    for column in ("labels", "completion_mask", "assistant_masks", "attention_mask", "position_ids"):
        values = row.get(column)
        if values is not None and (not isinstance(values, list) or len(values) != len(ids)):
            length = len(values) if isinstance(values, list) else 0
            return f"bad {column}", f"{column} has {length} entries; the row has {len(ids)} tokens."
    labels = row.get("labels")
    if labels is not None and not all(isinstance(label, int) and 0 <= label < 2**31 for label in labels):
        for place, label in enumerate(labels):
            if label != IGNORE_INDEX and not (isinstance(label, int) and 0 <= label < 2**31):
                return "bad labels", f"labels[{place}] is {label!r}: it must be a token id, or -100 where not trained."
    problem = token_weights_problem(row)
    if problem:
        return "bad weight", problem
    lengths = row.get("seq_lengths")
    if lengths is not None and not all(isinstance(length, int) and length > 0 for length in lengths):
        return "bad seq_lengths", f"seq_lengths holds {lengths}: every document has a token or more."
    if lengths is not None and sum(lengths) != len(ids):
        return "bad seq_lengths", f"seq_lengths adds up to {sum(lengths)}; the row has {len(ids)} tokens."
    return None
