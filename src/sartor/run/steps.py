"""How many optimizer steps a run has done: the only place that counts them.

In: the beginning and the end of each step, from whoever computes it.  Out: the numbers that everybody else reads:
`TrainerState.global_step`, messages, noise and rounding that are drawn for each step, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping


class StepCounter:
    """Counts the optimizer steps of one run; a batch that is skipped counts as a step.

    Example: two steps are done and the third is being computed: `done` is 2 and `current` is 3.
    """

    def __init__(self) -> None:
        self.done = 0
        """Steps whose update is made, or left out."""
        self.num_skipped = 0
        """Of them, those that were left out because the loss or the gradient was not finite."""
        self._is_under_way = False

    @property
    def current(self) -> int:
        """The step that is being computed, counted from 1; between two steps the last one; 0 before the first."""
        return self.done + self._is_under_way

    def begin(self) -> None:
        """A step is being computed from here on; one that was given up is begun anew under the same number."""
        self._is_under_way = True

    def finish(self, *, is_skipped: bool = False) -> None:
        """The step is done."""
        self.done += 1
        self.num_skipped += is_skipped
        self._is_under_way = False

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"done": self.done, "num_skipped": self.num_skipped}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from what `state` returned."""
        self.done, self.num_skipped = state["done"], state["num_skipped"]
