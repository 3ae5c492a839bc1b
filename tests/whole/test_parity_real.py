"""On SmolLM2-135M's real weights and real conversations, training equals trl's, step by step."""

from pathlib import Path

import pytest
from benchmarks.parity import compare
from benchmarks.settings import conversations

from sartor.demo.real_weights import obtain
from sartor.errors import ModelError

ROWS = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_chat.jsonl"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_steps_on_real_weights_equal_trls() -> None:
    """32 conversations, 10 steps of 4 x 2 rows in float32, no clipping, a constant learning rate."""
    if not ROWS.exists():
        pytest.skip(f"{ROWS} is not there")
    try:
        weights = obtain(print)
    except ModelError as error:
        pytest.skip(f"no real weights: {error}")
    compared = compare(weights.path, conversations(str(ROWS))[:32])
    print(compared.table())
    assert not compared.problems()
    assert len(compared.sartor.rows) == 10
    losses = compared.sartor.column("loss")
    assert losses[-1] < losses[0] - 0.1  # it did train
