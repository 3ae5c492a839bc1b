"""Ways to compute the same: chosen by hand they are obeyed, frozen, resumed, and change no bit but for rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sartor.errors import ConfigurationError
from sartor.optim import host_states, transaction
from tests.hf import tiny


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "PIECE_BYTES", 2_000)


def trained(folder: Path, **options: Any) -> Any:
    trainer = tiny.trainer(folder, model=tiny.make_model(attention_dropout=0.2, num_hidden_layers=2), **options)
    trainer.train()
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def states(trainer: Any) -> list[torch.Tensor]:
    optimizer = trainer.optimizer
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [value for parameter in found for value in optimizer.state[parameter].values()]


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in ((weights(one), weights(other)), (states(one), states(other))):
        assert len(mine) == len(theirs) > 0
        assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


OPTIONS: list[dict[str, Any]] = [
    {"recomputed_operations": "cheap"},
    {"optimizer_states": "host"},
    {"optimizer_states": "host", "optim": "adagrad", "max_grad_norm": 0.1},
    {"optimizer_states": "host", "optimizer_implementation": "for-loop"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_in_this_way_is_the_other_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    plain = {
        name: value for name, value in options.items() if name not in ("recomputed_operations", "optimizer_states")
    }
    one = trained(tmp_path / "one", max_steps=4, **options)
    other = trained(tmp_path / "other", max_steps=4, **plain)
    assert_same(one, other)
    plan = json.loads((tmp_path / "one" / "plan.json").read_text(encoding="utf-8"))
    assert plan["optimizer_states"] == options.get("optimizer_states", "device")
    assert plan["recomputes_cheap"] is ("recomputed_operations" in options)
    field = "gradient_checkpointing" if "recomputed_operations" in options else "optimizer_states"
    assert plan["reasons"][field].startswith("as asked")


class Stops(TrainerCallback):
    """Ends a run in the middle, as a defect would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            raise ZeroDivisionError


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stopped_run_goes_on_in_the_same_way_whatever_is_asked_for_now(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", max_steps=5, **options)
    saves = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    with pytest.raises(ZeroDivisionError):
        tiny.trainer(
            tmp_path / "cut",
            model=tiny.make_model(attention_dropout=0.2, num_hidden_layers=2),
            callbacks=[Stops()],
            **saves,
            **options,
        ).train()
    left_out = ("recomputed_operations", "optimizer_states", "optimizer_implementation")
    now = {name: value for name, value in options.items() if name not in left_out}
    fetched: list[int] = []
    real = host_states.HostStates.fetch

    def fetch(self: Any, piece: Any) -> None:
        fetched.append(len(piece))
        real(self, piece)

    monkeypatch.setattr(host_states.HostStates, "fetch", fetch)
    trainer = tiny.trainer(tmp_path / "cut", model=tiny.make_model(attention_dropout=0.2, num_hidden_layers=2),
                           **saves, **now)  # fmt: skip
    trainer.train(resume_from_checkpoint=True)
    assert_same(trainer, whole)
    assert trainer.plan.optimizer_states == options.get("optimizer_states", "device")
    assert trainer.plan.recomputes_cheap is ("recomputed_operations" in options)
    assert len(fetched) == (3 * fetched_pieces(trainer) if "optimizer_states" in options else 0)


def fetched_pieces(trainer: Any) -> int:
    update = transaction.Update(trainer.optimizer)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return len(list(update._pieces()))


@pytest.mark.parametrize("phase", ["fetch", "put_away"])
@pytest.mark.parametrize("calls", [{2}, {5, 6}, {8, 11}])
def test_memory_that_ends_while_states_are_streamed_is_survived_and_changes_nothing(
    phase: str, calls: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", max_steps=3, optimizer_states="host")
    real = getattr(host_states.HostStates, phase)
    count = 0

    def ends(self: Any, piece: Any) -> None:
        nonlocal count
        count += 1
        real(self, piece)
        if count in calls and phase == "fetch":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def ends_at_once(self: Any, piece: Any) -> None:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, piece)

    monkeypatch.setattr(host_states.HostStates, phase, ends if phase == "fetch" else ends_at_once)
    trainer = trained(tmp_path / "cut", max_steps=3, optimizer_states="host")
    assert_same(trainer, whole)
    assert len(trainer.plan.incidents) == len(calls)
    assert all("the optimizer's step" in incident for incident in trainer.plan.incidents)


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_the_implementation_that_was_asked_for_is_taken(implementation: str, optim: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, max_steps=2, optim=optim, optimizer_implementation=implementation)
    for group in trainer.optimizer.param_groups:
        assert (bool(group["fused"]), bool(group["foreach"])) == (
            implementation == "fused",
            implementation == "foreach",
        )
    assert trainer.plan.optimizer_implementation == implementation
    assert trainer.plan.reasons["optimizer_implementation"] == "as asked"


@pytest.mark.parametrize(
    ("optim", "expected"),
    [("adamw_torch_fused", "fused"), ("adamw_torch", "for-loop"), ("sgd", "fused"), ("rmsprop", "for-loop"),
     ("adafactor", None)],
)  # fmt: skip
def test_unasked_it_is_fused_where_there_is_one_and_the_name_of_the_optimizer_allows_it(
    optim: str, expected: str | None, tmp_path: Path
) -> None:
    trainer = trained(tmp_path, max_steps=1, optim=optim)
    assert trainer.plan.optimizer_implementation == expected
    if expected is not None:
        assert all(bool(group.get("fused")) is (expected == "fused") for group in trainer.optimizer.param_groups)


def test_states_that_a_run_left_with_the_host_serve_the_next_run(tmp_path: Path) -> None:
    trainer = trained(tmp_path, max_steps=2, optimizer_states="host")
    trainer.args.optimizer_states = None
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optim": "adafactor", "optimizer_states": "host"}, "optimizer_states='host' is for torch's own optimizers"),
        ({"optim": "adafactor", "optimizer_implementation": "fused"}, "optim='adafactor' is none"),
        ({"optim": "rmsprop", "optimizer_implementation": "fused"}, "no fused RMSprop"),
        ({"recomputed_operations": "cheap", "gradient_checkpointing": False}, "contradict each other"),
        ({"recomputed_operations": "some"}, "recomputed_operations='some' is unknown"),
        ({"optimizer_states": "disk"}, "optimizer_states='disk' is unknown"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_loaded(options: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        tiny.config(tmp_path, **options)
