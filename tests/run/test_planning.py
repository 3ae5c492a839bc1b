"""The plan of a run: simulated where that is worth it, by rules of thumb elsewhere, and said either way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sartor.memory import estimates
from sartor.memory.plan import plan_of
from sartor.run import planning
from tests.hf import tiny


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from sartor import SFTTrainer

    lines: list[str] = []
    monkeypatch.setattr(SFTTrainer, "say", lambda self, line: lines.append(line))
    return lines


def test_a_tiny_run_is_not_simulated_and_says_how_little_it_needs(tmp_path: Path, said: list[str]) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.train()
    assert trainer.plan.predicted_bytes == {}
    assert any("by a rule of thumb, of" in line for line in said)


def test_a_larger_run_is_simulated_and_its_plan_holds_what_was_foreseen(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["predicted_bytes"]
    assert written["peak"] == sum(size for name, size in written.items() if name != "peak") > 0
    assert trainer.plan.predicted_bytes == written
    assert any("more is needed, of" in line and "optimizer states" in line for line in said)
    assert any("time: a step about" in line and "2 steps" in line and "measured" in line for line in said)
    assert "a step needs" in trainer.plan.reasons["gradient_checkpointing"]
    forecast = plan_of(json.loads((tmp_path / "plan.json").read_text())).forecast
    assert forecast == trainer.plan.forecast
    assert forecast["run_s"] == 2 * forecast["chosen"]["step_s"] > 0
    assert forecast["neighbours"] == []  # comparing would take longer than the run
    assert forecast["left_to_the_plan"] is None  # nothing was asked for


def test_a_run_that_is_long_enough_says_what_neighbours_cost(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    monkeypatch.setattr(planning, "NEIGHBOUR_SHARE", float("inf"))
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    labels = {entry["label"]: entry for entry in trainer.plan.forecast["neighbours"]}
    recomputed = labels["every layer recomputed"]
    assert recomputed["step_s"] > trainer.plan.forecast["chosen"]["step_s"]
    assert recomputed["needed_bytes"] <= trainer.plan.forecast["chosen"]["needed_bytes"]
    assert any(line.startswith("  every layer recomputed:") and "time +" in line for line in said)


def test_what_was_asked_for_is_obeyed_by_the_search_too(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    options = {"micro_batch_tokens": 20, "gradient_checkpointing": True, "loss_chunk_rows": 5}
    trainer = tiny.trainer(tmp_path, max_steps=1, **options)
    trainer.train()
    assert {name: getattr(trainer.plan, name) for name in options} == options
    assert trainer.plan.recomputed_layers is None
    free = trainer.plan.forecast["left_to_the_plan"]
    assert (free["recomputed_layers"], free["loss_chunk_rows"]) == (0, 4_096)
    assert free["micro_batch_tokens"] < 20  # all of a batch
    assert sum("left to the plan (" in line and "time -" in line for line in said) == 1
    assert all(trainer.plan.reasons[name].startswith("as asked") for name in options)


def test_where_the_simulation_fails_the_run_goes_on_by_rules_of_thumb(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **others: Any) -> Any:
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    monkeypatch.setattr(estimates, "simulate_model", refuse)
    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.train()
    assert trainer.plan.predicted_bytes == {}
    assert sum("cannot be simulated (no fake kernel)" in line for line in said) == 1
