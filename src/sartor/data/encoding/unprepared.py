"""Rows that are trained as they are (`skip_prepare_dataset`): checked, and nothing else."""

from __future__ import annotations

from typing import Any

from sartor.data.encoding.encoder import token_problem
from sartor.data.encoding.limits import check_rows
from sartor.data.encoding.parts import places_of, rows_of
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import WHERE_COLUMN
from sartor.data.rows.detection import TOKEN_COLUMNS
from sartor.data.tokens.table import TokenRows
from sartor.records import DataSettings

_ROWS_PER_BATCH = 1_000


def check_unprepared(dataset: Any, settings: DataSettings, name: str) -> None:
    """Look at every row that can be read now: not those of a stream, nor what a function makes when it is asked.

    Raises:
        DataError: rows that cannot be trained on, all of them in one error.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    if "input_ids" not in dataset.column_names:
        return
    wanted = [column for column in dataset.column_names if column in (*TOKEN_COLUMNS, WHERE_COLUMN)]
    problems, first = ProblemLog(), 0
    for batch in dataset.with_format(None).select_columns(wanted).iter(_ROWS_PER_BATCH):
        rows = rows_of(batch)
        places = places_of(rows, first, name)
        first += len(rows)
        good = []
        for row, where in zip(rows, places, strict=True):
            problem = token_problem(row)
            if problem is None:
                good.append((row, where))
            else:
                problems.add(problem[0], where, problem[1], row)
        ids = [row["input_ids"] for row, _ in good]
        labels = [row["input_ids"] if row.get("labels") is None else row["labels"] for row, _ in good]
        documents = [row.get("seq_lengths") or [len(row["input_ids"])] for row, _ in good]
        check_rows(TokenRows.from_lists(ids, labels, documents), [where for _, where in good], settings, problems)
    problems.raise_if_any(f"{name} data", first)
