"""What is logged is measured over a window: the steps since the last log.

In: results of steps.  Out: their sums, which are divided when a log is due.  A window is part of a checkpoint, since a
run may be stopped between two logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from sartor.records import LossSums, StepResult


class Window:
    """Sums over the steps since the last log."""

    def __init__(self) -> None:
        self.loss = 0.0
        """Sum of the steps' mean losses, as Trainer logs it."""
        self.sums: LossSums | None = None
        self.num_skipped = 0
        """Steps whose batch was skipped: they have no loss."""

    def add(self, result: StepResult) -> None:
        """Count a step."""
        if result.is_skipped:
            self.num_skipped += 1
            return
        self.loss += result.sums.mean_loss
        self.sums = result.sums if self.sums is None else self.sums + result.sums

    def metrics(self) -> dict[str, float]:
        """trl's metrics, weighted by tokens."""
        if self.sums is None:
            return {}
        return {
            "entropy": float(self.sums.entropy_sum) / self.sums.num_targets,
            "mean_token_accuracy": float(self.sums.num_correct) / self.sums.num_targets,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "loss": self.loss,
            "num_skipped": self.num_skipped,
            "sums": None if self.sums is None else asdict(self.sums),
        }

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state` returned."""
        self.loss, self.num_skipped = state["loss"], state["num_skipped"]
        if state["sums"] is not None:
            fields: dict[str, Any] = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in state["sums"].items()
            }
            self.sums = LossSums(**fields)
