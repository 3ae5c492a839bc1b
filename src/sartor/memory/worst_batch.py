"""Which micro-batch of a run is its worst, and whether looking at it beforehand is worth its time.

In: what each row of the data takes, and the rows of each optimizer batch.  Out: the few optimizer batches whose cut can
hold the largest micro-batch.  What it keeps true: arithmetic on whole arrays, so that a million rows take a second;
the exact cut of those few is the stepper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 64
"""Optimizer batches that are cut to find the largest micro-batch, for each kind of largest."""
LARGEST_SHARE = 0.015
"""Of a run's tokens that a rehearsal may take; with its update it stays under 3 % of the time."""
SMALLEST_STEPS = 50
"""Optimizer steps below which a run has found out by itself before a rehearsal pays."""
SMALLEST_RUN_S = 120
"""Of a run, at the device's rate of matrix products, below which nothing is rehearsed unasked: the forecast alone takes
a second or two."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What each row of the prepared data takes."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batches:
    """Rows of the run's optimizer batches, end to end.

    Example: batches (4, 1) and (0,) are `rows [4, 1, 0]`, `starts [0, 2]`.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, batches: Sequence[Sequence[int]]) -> Batches:
        """From each batch's rows; none may be empty."""
        sizes = np.array([len(batch) for batch in batches], np.int64)
        rows = np.array([row for batch in batches for row in batch], np.int64)
        return cls(rows, np.cumsum(sizes) - sizes)

    def keys(self, number: int) -> list[int]:
        """Rows of one batch."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.rows)
        return [int(row) for row in self.rows[self.starts[number] : end]]


def candidates(rows: Rows, batches: Batches, micro_batch_tokens: int) -> list[int]:
    """Numbers of the batches that may hold the micro-batch with most tokens, longest row or most targets.

    A batch of S tokens is cut into even shares: of S = 10 with 4 at once, three of 3.3.  Its longest row may be more
    than a share.
    """
    if not len(batches.starts):
        return []
    sums = np.add.reduceat(rows.tokens[batches.rows], batches.starts)
    longest = np.maximum.reduceat(rows.tokens[batches.rows], batches.starts)
    targets = np.add.reduceat(rows.targets[batches.rows], batches.starts)
    num_parts = np.maximum(1, -(-sums // micro_batch_tokens))
    share = np.maximum(longest, sums / num_parts)
    found: list[int] = []
    for measure in (share, longest, targets / num_parts):
        found += np.argsort(-measure, kind="stable")[:CANDIDATES].tolist()
    return list(dict.fromkeys(found))


def is_tiny(num_steps: int, run_s: float | None) -> bool:
    """Whether a run is too short for a rehearsal unless that is asked for.

    Args:
        num_steps: optimizer steps.
        run_s: what the run takes at the device's rate of matrix products; None where that is not known.
    """
    return num_steps < SMALLEST_STEPS or (run_s is not None and run_s < SMALLEST_RUN_S)


def is_costly(rehearsed_tokens: int, run_tokens: float) -> bool:
    """Whether the largest micro-batch alone is too much of a run for a rehearsal unless that is asked for."""
    return rehearsed_tokens > LARGEST_SHARE * run_tokens
