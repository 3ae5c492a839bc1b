"""The update as a transaction: what it says it will allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks import memory_measure

from sartor.optim.transaction import Update


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_every_update_asks_for_the_copies_that_it_puts_aside(flags: dict[str, Any]) -> None:
    """States that are there are put aside too; not asked for are temporaries of a step that is not fused."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((300, 400), (50,), (200, 300))]
    update = Update(torch.optim.AdamW(parameters, **flags))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    for _ in range(3):
        asked = update.needed_bytes()
        with memory_measure.AllocatorPeak() as taken:
            update.step()
        assert 0.65 * taken.num_bytes - 1_024 <= asked <= 1.3 * taken.num_bytes
