"""Training in bfloat16 with stochastic rounding: through SFTTrainer, saved, resumed, survived, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from sartor import SFTTrainer
from sartor.errors import ConfigurationError
from sartor.optim import rounded_update, transaction
from tests.hf import tiny

BF16 = torch.bfloat16
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
ROUNDS: dict[str, Any] = {"stochastic_rounding": True, "bf16": True, "strict_precision": True}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_update, "BLOCK_VALUES", 100)
    monkeypatch.setattr(transaction, "PIECE_BYTES", 2_000)


def make(folder: Path, *, dtype: torch.dtype = BF16, **options: Any) -> SFTTrainer:
    model = tiny.make_model(attention_dropout=0.2, num_hidden_layers=2, dtype=dtype)
    return tiny.trainer(folder, model=model, **{**ROUNDS, **options})


def trained(folder: Path, **options: Any) -> SFTTrainer:
    trainer = make(folder, **options)
    trainer.train()
    return trainer


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in ((_weights(one), _weights(other)), (_states(one), _states(other))):
        assert len(mine) == len(theirs) > 0
        assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


def _weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def _states(trainer: Any) -> list[torch.Tensor]:
    optimizer = trainer.optimizer
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [optimizer.state[one][name] for one in found for name in sorted(optimizer.state[one])]


class Watch(TrainerCallback):
    """Keeps the dtypes of parameters and gradients, and the head's weights before and after each step."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.start: list[torch.Tensor] = []
        self.head: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self.start.append(model.lm_head.weight.detach().clone())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self.dtypes |= {parameter.dtype for parameter in model.parameters()}
        self.dtypes |= {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self.head.append(model.lm_head.weight.detach().clone())


class Stops(TrainerCallback):
    """Ends a run in the middle, as a defect would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            raise ZeroDivisionError


# --- one run ---------------------------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_bfloat16_and_the_plan_says_so(tmp_path: Path) -> None:
    watch = Watch()
    trainer = trained(tmp_path, callbacks=[watch], max_steps=2)
    assert watch.dtypes == {BF16}
    assert {state.dtype for state in _states(trainer)} == {torch.float32}
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (plan["stochastic_rounding"], plan["parameter_dtype"]) == (True, "bfloat16")


def test_losses_follow_those_of_float32_masters(tmp_path: Path) -> None:
    """Gradients of bfloat16 weights are less exact.  Measured: 3.2e-3; one update that is lost moves a loss by 0.1."""
    options = {"max_steps": 4, "learning_rate": 2e-3}
    plain = trained(tmp_path / "plain", stochastic_rounding=False, **options)
    found = trained(tmp_path / "rounded", **options)
    assert tiny.losses(found.state.log_history) == pytest.approx(tiny.losses(plain.state.log_history), abs=2e-2)


def test_updates_below_half_a_bfloat16_step_move_weights(tmp_path: Path) -> None:
    """At 2e-5 a step moves no weight above 0.01 by half the distance to its neighbour."""
    watch = Watch()
    before = tiny.make_model(attention_dropout=0.2, num_hidden_layers=2, dtype=BF16).lm_head.weight.detach()
    trained(tmp_path, callbacks=[watch], max_steps=3, learning_rate=2e-5, lr_scheduler_type="constant")
    large = before.abs() > 0.05
    moved = float((watch.head[-1] != before)[large].float().mean())
    assert 0.02 < moved < 0.5


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float16])
def test_the_model_is_handed_back_and_saved_in_the_dtype_it_arrived_in(dtype: torch.dtype, tmp_path: Path) -> None:
    watch = Watch()
    trainer = trained(tmp_path, dtype=dtype, callbacks=[watch], max_steps=2, save_strategy="steps", save_steps=2)
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {dtype}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {dtype}
    assert torch.equal(saved["lm_head.weight"], trainer.model.lm_head.weight)
    assert torch.equal(saved["lm_head.weight"], watch.head[-1].to(dtype))


def test_a_second_training_goes_on_from_the_very_weights_of_the_first(tmp_path: Path) -> None:
    watch = Watch()
    trainer = make(tmp_path, dtype=torch.float32, callbacks=[watch], max_steps=1)
    trainer.train()
    trainer.train()
    assert torch.equal(watch.head[0], watch.start[1])
    assert not torch.equal(watch.head[0], watch.head[1])


@pytest.mark.parametrize(
    "options",
    [
        {"peft_config": LORA},
        {"max_grad_norm": 0.01},
        {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.float().square().mean()},
        {"eval_dataset": True, "eval_strategy": "steps", "eval_steps": 1, "sample_prompts": ["the moon is"]},
        {"gradient_checkpointing": True, "micro_batch_tokens": 8, "neftune_noise_alpha": 5.0},
        {"optim": "sgd"},
        {"optim": "adagrad"},
        {"optim": "rmsprop", "optimizer_states": "host"},
    ],
    ids=lambda options: ", ".join(options),
)
def test_it_goes_together_with(options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, **({"eval_dataset": tiny.dataset()} if "eval_dataset" in options else {})}
    trainer = make(tmp_path, max_steps=2, **options)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    after = [parameter.detach() for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(bool(one.isfinite().all()) for one in after)
    assert trainer.plan is not None
    assert "bfloat16" in trainer.plan.parameter_dtype


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [None, "host"])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_a_stopped_run_goes_on_bit_for_bit(
    states: str | None, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_steps": 5, "optimizer_states": states, "dtype": dtype}
    whole = trained(tmp_path / "whole", **options)
    saves = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "cut", callbacks=[Stops()], **saves, **options)
    monkeypatch.setattr(transaction, "PIECE_BYTES", 700)
    trainer = make(tmp_path / "cut", **saves, **options)
    trainer.train(resume_from_checkpoint=True)
    assert_same(trainer, whole)


def test_a_rehearsal_changes_no_bit(tmp_path: Path) -> None:
    assert_same(trained(tmp_path / "one", max_steps=3, rehearse=True), trained(tmp_path / "other", max_steps=3))


@pytest.mark.parametrize("states", [None, "host"])
@pytest.mark.parametrize("calls", [{2}, {5, 6}, {30}])
def test_memory_that_ends_within_an_update_is_survived_and_changes_no_bit(
    states: str | None, calls: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", max_steps=3, optimizer_states=states)
    real, count = rounded_update.round_stochastically_, 0

    def ends(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(rounded_update, "round_stochastically_", ends)
    trainer = trained(tmp_path / "cut", max_steps=3, optimizer_states=states)
    assert_same(trainer, whole)
    assert trainer.plan is not None
    assert len(trainer.plan.incidents) == len(calls)
    assert "one block of values at a time" in trainer.plan.incidents[0]


def test_another_seed_rounds_otherwise(tmp_path: Path) -> None:
    options = {"max_steps": 1, "data_seed": 1, "neftune_noise_alpha": None}
    one, other = (trained(tmp_path / str(seed), seed=seed, **options) for seed in (1, 2))
    assert any(not torch.equal(a, b) for a, b in zip(_weights(one), _weights(other), strict=True))


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bf16": False, "strict_precision": False}, r"bf16=False asks for another dtype: set bf16=True"),
        ({"bf16": False, "fp16": True}, r"fp16=True asks for another dtype"),
        ({"optim": "adafactor"}, r"takes an update in pieces.*optim='adafactor' is none"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_loaded(options: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        tiny.config(tmp_path, **{**ROUNDS, **options})


def test_a_processor_without_bfloat16_refuses_unless_it_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sartor.device.cpu_has_bf16", lambda: False)
    trainer = make(tmp_path, strict_precision=False, max_steps=1)
    with pytest.raises(ConfigurationError, match=r"products here are in float32, although bf16 is permitted"):
        trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {BF16}
    trained(tmp_path, max_steps=1)


def test_an_own_optimizer_that_cannot_go_in_pieces_is_refused_before_the_first_step(tmp_path: Path) -> None:
    from transformers.optimization import Adafactor

    model = tiny.make_model(dtype=BF16)
    optimizer = Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    trainer = tiny.trainer(tmp_path, model=model, max_steps=1, optimizers=(optimizer, None), **ROUNDS)
    with pytest.raises(ConfigurationError, match=r"stochastic_rounding=True.*Adafactor"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_goes_on_otherwise_is_refused_until_that_is_accepted(first: bool, tmp_path: Path) -> None:
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, callbacks=[Stops()], stochastic_rounding=first, **{**saves, "max_steps": 4})
    options = {**saves, "max_steps": 4, "stochastic_rounding": not first}
    with pytest.raises(ConfigurationError, match=f"stochastic_rounding is {not first}, and was {first}"):
        make(tmp_path, **options).train(resume_from_checkpoint=True)
    watch = Watch()
    trainer = make(tmp_path, **options, callbacks=[watch], accept_changes=["stochastic_rounding"])
    trainer.train(resume_from_checkpoint=True)
    assert watch.dtypes == ({torch.float32} if first else {BF16})
    assert trainer.plan is not None
    assert trainer.plan.stochastic_rounding is not first
