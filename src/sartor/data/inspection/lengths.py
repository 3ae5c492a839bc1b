"""Counts lengths as rows go by, and what every `max_length` would cut of them.

What it keeps true: the counts are those that `cutting.cut` gives for the same length, and memory is 16 bytes a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sartor.data.inspection.prepared import LONG_TAIL
from sartor.data.inspection.record import Cut, Lengths, Suggestion, rows, share
from sartor.data.tokens.table import TokenRows

LEVELS = tuple(2**power for power in range(4, 21))
"""Lengths that are tried besides the one asked for."""
SHOWN_LEVELS = 6
LOSS_SHARE = 0.001
"""Share of the trained tokens that a suggested length may lose."""
STEP = 64
"""Suggested lengths are multiples of this."""


class LengthTally:
    """Lengths of rows, and what is lost at each level."""

    def __init__(self, max_length: int | None, mode: str, context: int | None = None) -> None:
        """Start with no rows.

        Args:
            max_length: the length asked for; it is among the levels.
            mode: `keep_start` or `keep_end`.
            context: tokens that the model can see at once, where that is known.
        """
        self._max_length = max_length
        self._mode = mode
        self._context = context
        self._levels = sorted({*LEVELS, *([] if max_length is None else [max_length])})
        self._lost = np.zeros((len(self._levels), 4), np.int64)
        self._tokens: list[NDArray[np.int64]] = []
        self._targets: list[NDArray[np.int64]] = []

    def add(self, encoded: TokenRows) -> None:
        """Count these rows, which nothing is cut of yet."""
        if not len(encoded):
            return
        lengths, targets, has_labels = encoded.lengths, encoded.targets_per_row, encoded.has_labels
        self._tokens.append(lengths)
        self._targets.append(targets)
        for number, level in enumerate(self._levels):
            longer = np.flatnonzero(lengths > level)
            if len(longer):
                kept = encoded.take(longer).truncate(level, self._mode)
                self._lost[number] += (
                    len(longer),
                    int(lengths[longer].sum()) - level * len(longer),
                    int(targets[longer].sum()) - kept.num_targets,
                    int(np.count_nonzero(~kept.has_labels & has_labels[longer])),
                )

    def result(self) -> Lengths:
        """What was counted."""
        empty = np.zeros(0, np.int64)
        tokens = np.concatenate(self._tokens) if self._tokens else empty
        targets = np.concatenate(self._targets) if self._targets else empty
        cuts = [Cut(level, *lost) for level, lost in zip(self._levels, self._lost.tolist(), strict=True)]
        suggestion = None
        if len(tokens):
            suggestion = suggested(tokens, cuts, int(targets.sum()), self._context)
        return Lengths(tokens, targets, self._shown(cuts), suggestion, self._max_length)

    def _shown(self, cuts: list[Cut]) -> tuple[Cut, ...]:
        """The levels around the interesting ones: the first that cuts nothing, some below it, and the one asked for."""
        harmless = next((number for number, cut in enumerate(cuts) if not cut.num_rows), len(cuts) - 1)
        shown = cuts[max(0, harmless - SHOWN_LEVELS + 1) : harmless + 1]
        asked = [cut for cut in cuts if cut.max_length == self._max_length and cut not in shown]
        return tuple(sorted([*shown, *asked], key=lambda cut: cut.max_length))


def suggested(tokens: NDArray[np.int64], cuts: list[Cut], num_targets: int, context: int | None) -> Suggestion:
    """A `max_length` for these rows, and why.

    The longest row whole, unless it stands far out (`LONG_TAIL`): then the least level that loses next to nothing
    that is trained. Rows are never padded, so a generous length costs memory for the longest row alone, and no time
    for the others.
    """
    longest, most = int(tokens.max()), int(np.quantile(tokens, 0.99, method="higher"))
    if context is not None and longest > context:
        num_longer = int(np.count_nonzero(tokens > context))
        return Suggestion(
            context, f"the model sees {context:,} tokens at once; {rows(num_longer)} of {len(tokens):,} are longer."
        )
    whole = _rounded(longest, context)
    if longest <= LONG_TAIL * most:
        return Suggestion(whole, f"nothing is cut: the longest row has {longest:,} tokens.")
    fitting = [
        cut
        for cut in cuts
        if cut.max_length >= most and not cut.num_emptied and cut.num_targets <= LOSS_SHARE * num_targets
    ]
    cut = fitting[0] if fitting else None
    if cut is None or cut.max_length >= whole:
        return Suggestion(
            whole, f"nothing is cut: the longest row has {longest:,} tokens, and shorter lengths lose targets."
        )
    lost = share(cut.num_targets, num_targets)
    return Suggestion(
        cut.max_length,
        f"{rows(cut.num_rows)} of {len(tokens):,} {'is' if cut.num_rows == 1 else 'are'} longer and "
        f"{rows(cut.num_targets, 'trained token is', 'trained tokens are')} lost ({lost}); memory must hold the "
        f"longest row, which has {longest:,}.",
    )


def _rounded(length: int, context: int | None) -> int:
    """The next multiple of `STEP`, within what the model can see."""
    whole = -(-length // STEP) * STEP
    return whole if context is None else min(whole, context)
