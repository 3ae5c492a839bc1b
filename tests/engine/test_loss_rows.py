"""However few rows of a chunk are worked on together, sums and gradients are those of the whole chunk."""

import pytest
import torch
from torch import nn

from sartor.engine import loss
from sartor.engine.loss import LossForm, linear_cross_entropy
from sartor.engine.objectives import Objective

NUM, WIDTH, VOCABULARY = 11, 8, 23


@pytest.mark.parametrize("rows", [1, 2, 4, NUM - 1, NUM, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_number_of_rows_at_once_changes_nothing(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY).to(dtype)
    hidden, targets = torch.randn(NUM, WIDTH, dtype=dtype), torch.randint(0, VOCABULARY, (NUM,))
    form = LossForm(Objective(label_smoothing=0.1), logit_scale=2.0, logit_softcap=3.0)

    def run(cache_bytes: int) -> list[torch.Tensor]:
        monkeypatch.setattr(loss, "CACHE_BYTES", cache_bytes)
        head.zero_grad()
        sums, grad_hidden = linear_cross_entropy(
            hidden, head, targets, form, grad_scale=0.5, chunk_rows=NUM, compute_dtype=dtype
        )
        assert sums.num_targets == NUM
        assert grad_hidden is not None
        assert head.weight.grad is not None
        return [sums.loss_sum, sums.entropy_sum, sums.num_correct, grad_hidden, head.weight.grad.clone()]

    whole = run(1 << 30)
    for found, expected in zip(run(4 * VOCABULARY * rows), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)
