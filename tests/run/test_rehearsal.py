"""The rehearsal changes nothing of a run but its plan, and finds out before the first step what does not fit."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.engine.step import Engine
from sartor.errors import OutOfMemoryError
from sartor.memory import worst_batch
from sartor.run.state import generator_states
from sartor.run.stepper import Updater
from tests.hf import tiny

OPTIONS: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 4, "weight_decay": 0.1, "eval_steps": None}


def dropping_model() -> Any:
    return tiny.make_model(attention_dropout=0.3)


def run(folder: Path, **options: Any) -> Any:
    trainer = tiny.trainer(folder, model=dropping_model(), **{**OPTIONS, **options})
    trainer.train()
    return trainer


def plan_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_tokens": 12},
        {"micro_batch_tokens": 12, "gradient_checkpointing": True},
        {"optim": "adafactor"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"neftune_noise_alpha": 5.0, "optim": "adamw_torch"},
    ],
    ids=str,
)
def test_weights_are_the_same_bit_for_bit_with_and_without(options: dict[str, Any], tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", rehearse=False, **options)
    rehearsed = run(tmp_path / "rehearsed", rehearse=True, **options)
    assert rehearsed.memory["measured"]["peak_bytes"] > 0
    assert plain.memory is None
    assert tiny.losses(rehearsed.state.log_history) == tiny.losses(plain.state.log_history)
    expected = tiny.weights(plain.model)
    for name, weight in tiny.weights(rehearsed.model).items():
        assert torch.equal(weight.view(torch.int32), expected[name].view(torch.int32)), name


def test_dropout_matters_to_these_runs(tmp_path: Path) -> None:
    """Else the tests above could not see generators that were moved."""
    one = run(tmp_path / "one", rehearse=False)
    torch.manual_seed(1)
    other = run(tmp_path / "other", rehearse=False, seed=7, data_seed=42)
    assert tiny.losses(one.state.log_history) != tiny.losses(other.state.log_history)


def test_everything_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, gradients, moments, generators and the schedule when the first step begins."""
    from sartor.run import training

    seen: list[dict[str, Any]] = []
    inner = training.rehearse_run

    def state(updater: Updater) -> dict[str, Any]:
        model = updater.recovery.engine.model
        return {
            "weights": tiny.weights(model),
            "gradients": [parameter.grad for parameter in model.parameters()],
            "moments": dict(updater.optimizer.state),
            "generators": str(generator_states()),
            "schedule": updater.scheduler.state_dict(),
            "step": updater.steps.current,
            "mode": model.training,
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        }

    def spied(settings: Any, data_loader: Any, updater: Updater, *rest: Any) -> Any:
        seen.append(state(updater))
        found = inner(settings, data_loader, updater, *rest)
        seen.append(state(updater))
        return found

    monkeypatch.setattr(training, "rehearse_run", spied)
    run(tmp_path, rehearse=True)
    before, after = seen
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(gradient is None for gradient in after["gradients"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_foreseen_and_measured_stand_side_by_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level("INFO", logger="sartor"):
        trainer = run(tmp_path, rehearse=True)
    (line,) = [record.message for record in caplog.records if "rehearsed the largest" in record.message]
    assert "MB measured" in line
    assert "MB foreseen" in line
    kept = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert kept == trainer.memory
    assert plan_of(tmp_path)["measured_bytes"] == kept["measured"]["peak_bytes"]
    labels = [[(part["phase"], part["layer"]) for part in kept[one]["timeline"]] for one in ("foreseen", "measured")]
    assert labels[0][: len(labels[1])] == labels[1]
    assert ("backward", 0) in labels[1]


def test_the_largest_micro_batch_of_the_run_is_taken(tmp_path: Path) -> None:
    rows = [{"text": " ".join(["moon"] * (3 + (7 * number) % 11))} for number in range(40)]
    trainer = tiny.trainer(
        tmp_path, rows=tiny.dataset(rows), rehearse=True, max_steps=10, per_device_train_batch_size=4
    )
    largest = []
    inner = Engine.backward

    def seen(self: Engine, micro: Any, **named: Any) -> Any:
        largest.append(micro.num_tokens)
        return inner(self, micro, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "backward", seen)
        trainer.train()
    assert trainer.memory is not None
    assert sum(trainer.memory["document_lengths"]) == max(largest)
    assert max(largest) > min(largest)


def test_memory_that_ends_in_the_rehearsal_makes_the_cut_finer_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Engine.backward

    def limited(self: Engine, micro: Any, **named: Any) -> Any:
        if micro.num_tokens > 15:
            raise torch.OutOfMemoryError("injected: out of memory")
        return inner(self, micro, **named)

    expected = run(tmp_path / "plain", rehearse=False)
    monkeypatch.setattr(Engine, "backward", limited)
    found = run(tmp_path / "limited", rehearse=True)
    plan = plan_of(tmp_path / "limited")
    assert plan["micro_batch_tokens"] <= 15
    assert plan["incidents"]
    assert all(incident.startswith("the rehearsal: memory ran out") for incident in plan["incidents"])
    assert plan["reasons"]["micro_batch_tokens"] == "memory ran out before the first step"
    assert len(found.state.log_history) == len(expected.state.log_history)


def test_a_forecast_that_was_too_low_is_corrected_before_the_run_and_rehearsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sartor.run import planning

    caplog.set_level("INFO", logger="sartor")
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    plain = run(tmp_path / "plain", rehearse=True)
    inner = planning.plan_with

    def too_low(*given: Any) -> Any:
        plan = inner(*given)
        less = {**plan.predicted_bytes, "peak": plan.predicted_bytes["peak"] // 2}
        return dataclasses.replace(plan, predicted_bytes=less, pass_bytes=plan.pass_bytes // 4)

    monkeypatch.setattr(planning, "plan_with", too_low)
    found = run(tmp_path / "corrected", rehearse=True)
    missing = found.plan.measured_bytes - found.plan.predicted_bytes["peak"]
    assert found.plan.pass_bytes >= plain.plan.pass_bytes // 4 + missing
    assert sum("more than was foreseen" in record.message for record in caplog.records) == 1
    expected = tiny.weights(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(found.model).items())


def test_what_cannot_be_made_smaller_ends_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Engine, micro: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("injected: out of memory")

    monkeypatch.setattr(Engine, "backward", never)
    trainer = tiny.trainer(tmp_path, rehearse=True, **OPTIONS)
    with tiny.untouched(trainer.model), pytest.raises(OutOfMemoryError, match="the rehearsal"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_tiny_runs_are_not_rehearsed_unasked(tmp_path: Path) -> None:
    assert run(tmp_path).memory is None


def test_a_run_is_rehearsed_unasked_where_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_batch, "SMALLEST_RUN_S", 0)
    assert run(tmp_path / "short").memory is None
    assert run(tmp_path / "long", max_steps=worst_batch.SMALLEST_STEPS + 60).memory is not None
    monkeypatch.setattr(worst_batch, "LARGEST_SHARE", 0.001)
    assert run(tmp_path / "costly", max_steps=worst_batch.SMALLEST_STEPS + 60).memory is None


def test_a_stream_and_an_own_loss_say_why_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sartor"):
        run(tmp_path / "stream", rows=tiny.stream(tiny.texts()), rehearse=True)
        run(tmp_path / "own", compute_loss_func=lambda outputs, labels, **rest: outputs.logits.mean(), rehearse=True)
    said = [record.message for record in caplog.records if "there is no rehearsal" in record.message]
    assert ["stream" in said[0], "own loss" in said[1]] == [True, True]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_tokens": 12, "optim": "adamw_torch"},
        {"optim": "adafactor"},
        {"optim": "adagrad"},
        {"bf16": True, "stochastic_rounding": True, "strict_precision": True},
    ],
    ids=str,
)
def test_the_rehearsal_itself_is_foreseen_as_the_allocator_counts_it(options: dict[str, Any], tmp_path: Path) -> None:
    """With weights large enough for its update to be its worst moment, where it takes one."""
    model = tiny.make_model(hidden_size=128, intermediate_size=704, num_hidden_layers=4)
    trainer = tiny.trainer(tmp_path, model=model, rehearse=True, **{**OPTIONS, **options})
    trainer.train()
    measured, foreseen = trainer.memory["measured"], trainer.memory["foreseen"]
    passes_bytes = max(part["bytes"] for part in measured["timeline"])
    assert (measured["peak_bytes"] > 1.1 * passes_bytes) == (options.get("optim") not in ("adafactor", "adagrad"))
    assert foreseen["peak_bytes"] == pytest.approx(measured["peak_bytes"], rel=5e-3)


PROFILERS: dict[str, Any] = {
    "torch.profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "torch.autograd.profiler": torch.autograd.profiler.profile,
}


@pytest.mark.parametrize("kind", PROFILERS)
@pytest.mark.parametrize("is_run", [True, False], ids=["train", "profile"])
def test_a_profiler_of_the_users_keeps_its_session(
    kind: str, is_run: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sartor")
    trainer = tiny.trainer(tmp_path, rehearse=True, **OPTIONS)
    with PROFILERS[kind]() as profiler:
        with torch.profiler.record_function("before"):
            pass
        trainer.train() if is_run else trainer.profile()
        with torch.profiler.record_function("after"):
            pass
    names = {event.key for event in profiler.key_averages()}
    assert {"before", "after"} <= names
    assert any("linear" in name or "mm" in name for name in names)
    assert trainer.memory["measured"]["peak_bytes"] is None
    assert "profiler" in trainer.memory["measured"]["reason"]
    assert trainer.memory["foreseen"]["peak_bytes"] > 0
    assert any("could not be measured" in record.message for record in caplog.records)
    assert any("profiler" in text.get_text() for text in trainer.plot_memory().axes[0].texts)
    if is_run:
        assert trainer.plan.measured_bytes is None


def test_a_profiler_that_warms_up_keeps_its_session(tmp_path: Path) -> None:
    """It is prepared and has not begun: another one then ends the process, so this is a process of its own."""
    script = f"""
import torch
from pathlib import Path
from tests.hf import tiny

schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule)
profiler.start()
trainer = tiny.trainer(Path({str(tmp_path)!r}), rehearse=True, max_steps=2)
trainer.train()
profiler.step()
torch.ones(3) + 1
profiler.stop()
assert "aten::add" in [event.key for event in profiler.key_averages()]
assert trainer.memory["measured"]["peak_bytes"] is None
del profiler
again = tiny.trainer(Path({str(tmp_path / "again")!r}), rehearse=True, max_steps=2)
again.train()
assert again.memory["measured"]["peak_bytes"] > 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_after_a_profilers_session_is_over_the_rehearsal_measures_again(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    trainer = run(tmp_path, rehearse=True)
    assert trainer.memory["measured"]["peak_bytes"] > 0
    assert profiler.events()
