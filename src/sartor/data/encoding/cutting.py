"""Cuts rows to `max_length`, and leaves out those of which nothing that is trained is left.

What comes in: encoded rows and their places.  What goes out: the rows that are kept, and the summary with what that
cost.  What it keeps true: rows keep their order; every token that is lost is counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.places import Places
from sartor.data.tokens.table import TokenRows
from sartor.errors import DataError
from sartor.records import DataSettings, DataSummary, RowFormat

ROWS_NAMED = 3
"""Rows that an error names."""


def cut(
    rows: TokenRows, settings: DataSettings, summary: DataSummary, places: Places
) -> tuple[TokenRows, DataSummary, Places]:
    """Rows cut to `max_length`, without those that keep no target; the summary with what that cost; the rows' places.

    Rows of weight 0 never had a target, and are left out whatever the options; rows that came tokenized without any
    are treated as trl does.  With packing nothing is dropped, as in trl: `bfd` cuts rows to the block's length from
    the end, the other strategies cut nothing.
    """
    num_left_out = 0
    if summary.format is not RowFormat.TOKENIZED and not (has_labels := rows.has_labels).all():
        num_left_out = int(np.count_nonzero(~has_labels))
        rows, places = rows.take(np.flatnonzero(has_labels)), places.take(np.flatnonzero(has_labels))
    if settings.max_length is None or (settings.packing and settings.packing_strategy != "bfd"):
        return rows, replace(summary, num_dropped_rows=num_left_out), places
    mode = "keep_start" if settings.packing else settings.truncation_mode
    is_cut = rows.lengths > settings.max_length
    short = rows.truncate(settings.max_length, mode) if is_cut.any() else rows
    keeps_labels = short.has_labels
    summary = replace(
        summary,
        num_truncated_rows=int(np.count_nonzero(is_cut)),
        num_truncated_tokens=rows.num_tokens - short.num_tokens,
        num_truncated_targets=rows.num_targets - short.num_targets,
        num_dropped_rows=num_left_out,
    )
    if settings.packing or keeps_labels.all():
        return short, summary, places
    if settings.no_targets == "error":
        raise _without_targets(np.flatnonzero(~keeps_labels), settings, summary.name, places)
    kept = np.flatnonzero(keeps_labels)
    num_dropped = num_left_out + len(short) - len(kept)
    return short.take(kept), replace(summary, num_dropped_rows=num_dropped), places.take(kept)


def _without_targets(rows: NDArray[np.int64], settings: DataSettings, name: str, places: Places) -> DataError:
    """The error that `no_targets="error"` asks for."""
    first = "; ".join(places.where(int(number)) for number in rows[:ROWS_NAMED])
    return DataError(
        f"{name} data: max_length={settings.max_length} with truncation_mode={settings.truncation_mode} leaves nothing "
        f"that is trained of {len(rows):,} rows (first {first}). Raise max_length, shorten or remove these rows, or "
        "have them dropped with no_targets='drop'."
    )
