"""Losses that stand out from those before them: reported with their rows, never acted on.

The rule: a step's mean loss is a spike where it is above twice the mean of the last `WINDOW` steps, and above that
mean by more than six of their standard deviations.  Before `LEAST` steps there is none.  What is remembered of a
spike is the threshold that it passed, so that one does not hide the next, and a level that has risen is taken for the
new one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

WINDOW = 100
LEAST = 20
SIGMAS = 6.0
TIMES = 2.0


class Spikes:
    """The losses of the last steps, and how many spikes there were."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self.count = 0

    def add(self, loss: float) -> float | None:
        """Count a step's loss; returns the mean of those before it where it is a spike.

        Example: after twenty losses of 1.0, a loss of 2.5 is a spike (mean 1.0), one of 1.9 is none.
        """
        mean, threshold = self._mean_and_threshold()
        if loss <= threshold:
            self._losses.append(loss)
            return None
        self._losses.append(threshold)
        self.count += 1
        return mean

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"losses": list(self._losses), "count": self.count}

    def load_state(self, losses: Iterable[float], count: int) -> None:
        """Go on from what `state` returned."""
        self._losses = deque(losses, maxlen=WINDOW)
        self.count = count

    def _mean_and_threshold(self) -> tuple[float, float]:
        number = len(self._losses)
        if number < LEAST:
            return math.nan, math.inf
        mean = math.fsum(self._losses) / number
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in self._losses) / number)
        return mean, max(TIMES * mean, mean + SIGMAS * deviation)
