"""Cuts rows to `max_length`, and leaves out those of which nothing that is trained is left.

What comes in: encoded rows and their places.  What goes out: the rows that are kept, and what that cost.  What it
keeps true: rows keep their order; every token that is lost is counted.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sartor.data.reading.places import Places
from sartor.data.tokens.table import TokenRows
from sartor.errors import DataError
from sartor.records import DataSettings

LOSSES = ("num_truncated_rows", "num_truncated_tokens", "num_truncated_targets", "num_dropped_rows")
"""Fields of a summary that say what cutting costs."""
ROWS_NAMED = 3
"""Rows that an error names."""


def cut(
    rows: TokenRows, places: Places, settings: DataSettings, *, name: str, is_tokenized: bool
) -> tuple[TokenRows, Places, Counter[str]]:
    """Rows cut to `max_length`, without those that keep no target; their places; and what that cost, by `LOSSES`.

    Rows of weight 0 never had a target, and are left out whatever the options; rows that came tokenized without any
    are treated as trl does.  With packing nothing is dropped, as in trl: `bfd` cuts rows to the block's length from
    the end, the other strategies cut nothing.
    """
    cost: Counter[str] = Counter()
    if not is_tokenized and not (has_labels := rows.has_labels).all():
        kept = np.flatnonzero(has_labels)
        cost["num_dropped_rows"] = len(rows) - len(kept)
        rows, places = rows.take(kept), places.take(kept)
    if settings.max_length is None or (settings.packing and settings.packing_strategy != "bfd"):
        return rows, places, cost
    mode = "keep_start" if settings.packing else settings.truncation_mode
    is_cut = rows.lengths > settings.max_length
    short = rows.truncate(settings.max_length, mode) if is_cut.any() else rows
    cost["num_truncated_rows"] = int(np.count_nonzero(is_cut))
    cost["num_truncated_tokens"] = rows.num_tokens - short.num_tokens
    cost["num_truncated_targets"] = rows.num_targets - short.num_targets
    keeps_labels = short.has_labels
    if settings.packing or keeps_labels.all():
        return short, places, cost
    if settings.no_targets == "error":
        raise _without_targets(np.flatnonzero(~keeps_labels), settings, name, places)
    kept = np.flatnonzero(keeps_labels)
    cost["num_dropped_rows"] += len(short) - len(kept)
    return short.take(kept), places.take(kept), cost


def _without_targets(rows: NDArray[np.int64], settings: DataSettings, name: str, places: Places) -> DataError:
    """The error that `no_targets="error"` asks for."""
    first = "; ".join(places.where(int(number)) for number in rows[:ROWS_NAMED])
    return DataError(
        f"{name} data: max_length={settings.max_length} with truncation_mode={settings.truncation_mode} leaves nothing "
        f"that is trained of {len(rows):,} rows (first {first}). Raise max_length, shorten or remove these rows, or "
        "have them dropped with no_targets='drop'."
    )
