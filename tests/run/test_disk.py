"""Room for checkpoints: what is foreseen before the first step is what a checkpoint then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from sartor.run import disk
from tests.hf import tiny


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optim": "sgd"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "rmsprop", "optim_args": "centered=true"},
        {"optim": "adagrad"},
        {"optim": "adafactor"},
    ],
    ids=str,
)
def test_a_checkpoint_is_foreseen_with_the_states_of_its_optimizer(options: dict[str, Any], tmp_path: Path) -> None:
    found: list[int] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            model, masters = trainer.model, trainer.masters
            state = disk._state_bytes(model, masters, trainer.optimizer)
            found.append(disk._weights_bytes(model, masters) + state)

    trainer = tiny.trainer(tmp_path, callbacks=[Watch()], max_steps=2, **options)
    trainer.train()
    counts_bytes = 4 * sum(1 for _ in trainer.model.parameters())  # of steps
    before, after = found
    assert before <= after <= before + counts_bytes
