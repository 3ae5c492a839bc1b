"""`total_batch_size` alone: the plan splits it, transformers sees the split, and the weights do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers import TrainerCallback

from sartor import SFTConfig, SFTTrainer
from sartor.errors import ConfigurationError
from sartor.memory.plan import device_rows
from tests.hf import tiny

LONGEST = 4


class Seen(TrainerCallback):
    """What a callback is told of the split."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int, int]] = []
        self.num_substeps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.parts.append((args.per_device_train_batch_size, args.gradient_accumulation_steps, state.train_batch_size))

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.num_substeps += 1


def trainer_of(folder: Path, **options: Any) -> SFTTrainer:
    """Thirty rows of 2 to 4 tokens, twelve of them a step."""
    own = {name: options.pop(name) for name in ("callbacks", "compute_loss_func") if name in options}
    defaults = {
        name: getattr(tiny.config(folder), name)
        for name in ("learning_rate", "logging_steps", "save_strategy", "report_to", "disable_tqdm", "use_cpu")
    }
    args = SFTConfig(**{**defaults, "output_dir": str(folder), "total_batch_size": 12, "bf16": False, **options})
    rows = [{"input_ids": list(range(5, 5 + 2 + number % 3)), "labels": [7] * (2 + number % 3)} for number in range(30)]
    return SFTTrainer(
        tiny.make_model(),
        args,
        train_dataset=tiny.dataset(rows),
        processing_class=tiny.make_tokenizer(),
        **own,
    )


@given(some.integers(1, 200), some.integers(1, 100), some.integers(1, 2_000))
def test_rows_of_a_device_batch_divide_the_whole_and_go_through_at_once(rows: int, longest: int, tokens: int) -> None:
    found = device_rows(rows, longest, tokens)
    assert rows % found == 0
    assert found == 1 or found * longest <= tokens
    assert not any(rows % more == 0 and more * longest <= tokens for more in range(found + 1, rows + 1))


def test_the_plan_splits_and_everyone_sees_the_same_parts(tmp_path: Path) -> None:
    seen = Seen()
    trainer = trainer_of(tmp_path, max_steps=2, micro_batch_tokens=4 * LONGEST + 1, callbacks=[seen])
    trainer.train()
    assert seen.parts == [(4, 3, 4)] * 2
    assert seen.num_substeps == 2 * 2
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (plan["per_device_train_batch_size"], plan["gradient_accumulation_steps"]) == (4, 3)
    assert "is total_batch_size=12" in plan["reasons"]["per_device_train_batch_size"]
    written = json.loads((tmp_path / "sft_config.json").read_text(encoding="utf-8"))
    assert (written["per_device_train_batch_size"], written["gradient_accumulation_steps"]) == (4, 3)


def test_an_epoch_has_the_same_steps_and_weights_however_the_batch_is_split(tmp_path: Path) -> None:
    found = []
    for tokens in (1, 2 * LONGEST, 1_024):
        trainer = trainer_of(tmp_path / str(tokens), num_train_epochs=2, micro_batch_tokens=tokens)
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps == 6  # 12, 12 and 6 rows, twice
        assert trainer.state.epoch == 2
        found.append((trainer.args.per_device_train_batch_size, tiny.weights(trainer.model)))
    assert [size for size, _ in found] == [1, 2, 12]
    for _, weights in found[1:]:
        for name, weight in weights.items():
            torch.testing.assert_close(weight, found[0][1][name], rtol=0, atol=2e-6)


def test_what_the_user_splits_is_obeyed(tmp_path: Path) -> None:
    for number, (given_parts, parts) in enumerate(
        [
            ({"per_device_train_batch_size": 3}, (3, 4)),
            ({"gradient_accumulation_steps": 2}, (6, 2)),
            ({"per_device_train_batch_size": 12}, (12, 1)),
        ]
    ):
        trainer = trainer_of(tmp_path / str(number), max_steps=1, micro_batch_tokens=LONGEST, **given_parts)
        trainer.train()
        assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == parts
        assert trainer.plan.per_device_train_batch_size is None
        assert "per_device_train_batch_size" not in trainer.plan.reasons


def test_the_default_size_is_obeyed_where_it_is_given(tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path), use_cpu=True, total_batch_size=32, per_device_train_batch_size=8)
    assert not args.splits_batch
    assert SFTConfig(str(tmp_path), use_cpu=True, total_batch_size=32).splits_batch
    with pytest.raises(ConfigurationError, match="is not a multiple"):
        SFTConfig(str(tmp_path), use_cpu=True, total_batch_size=12, per_device_train_batch_size=8)
    again = dataclasses.replace(SFTConfig(str(tmp_path), use_cpu=True, total_batch_size=12), learning_rate=1.0)
    assert again.splits_batch


def test_a_run_that_goes_on_keeps_its_split_and_its_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", micro_batch_tokens=2 * LONGEST, **options)
    whole.train()
    resumed = trainer_of(tmp_path / "whole", micro_batch_tokens=1_024, **options)  # the plan of the checkpoint holds
    seen = Seen()
    resumed.add_callback(seen)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert seen.parts == [(2, 6, 2)] * 2
    for name, weight in tiny.weights(whole.model).items():
        assert torch.equal(weight, tiny.weights(resumed.model)[name])


def test_free_memory_does_not_decide_what_is_learned(tmp_path: Path) -> None:
    dropping = trainer_of(tmp_path / "1", num_train_epochs=1, micro_batch_tokens=1, dataloader_drop_last=True)
    dropping.train()
    assert dropping.args.per_device_train_batch_size == 6
    assert "dataloader_drop_last" in dropping.plan.reasons["per_device_train_batch_size"]

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        return outputs.logits.float().square().mean()

    own = trainer_of(tmp_path / "2", max_steps=1, micro_batch_tokens=1, compute_loss_func=loss)
    own.train()
    assert own.args.per_device_train_batch_size == 6
    assert "own loss" in own.plan.reasons["per_device_train_batch_size"]
