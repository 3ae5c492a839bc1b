"""Who this process is among how many that train together.

In: a number of one process, or a yes or no.  Out: what all processes have of it together.  Alone, which is what every
run is today, each of these does nothing: `ALONE` gives back what it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Ranks:
    """One process, alone; several processes are a subclass that talks to the others."""

    number: int = 0
    """Of this process, counted from 0."""
    count: int = 1
    """Of all processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all of them."""
        return self.number == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; each of them calls this, with a tensor of the same shape and dtype."""
        return value

    def total(self, value: float) -> float:
        """The sum of a number over all processes, in float64."""
        import torch

        return value if self.count == 1 else float(self.sum(torch.tensor(value, dtype=torch.float64)))


ALONE = Ranks()
