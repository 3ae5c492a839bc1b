"""A look at a training's memory leaves it untouched; figures come from a notebook and at a run's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.errors import ConfigurationError
from sartor.hf.figures import predicted_memory, write_figures
from sartor.report.run_page import write_run_page
from sartor.run import planning, profiling
from tests.hf import tiny


def test_a_profile_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    plain = tiny.trainer(tmp_path / "plain", max_steps=2)
    plain.train()
    trainer = tiny.trainer(tmp_path / "profiled", max_steps=2)
    with tiny.untouched(trainer.model):
        found = trainer.profile()
    assert found["measured"]["peak_bytes"] == pytest.approx(found["foreseen"]["peak_bytes"], rel=0.1)
    assert trainer.optimizer is None
    trainer.train()
    expected = tiny.weights(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(trainer.model).items())


def test_the_three_figures_of_a_notebook(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2, rehearse=True)
    trainer.train()
    for plot, title in (
        (trainer.plot_memory, "Memory over one step"),
        (trainer.plot_lengths, "Distribution of input_ids length"),
        (trainer.plot_loss, "Loss"),
    ):
        figure: Any = plot()
        assert figure.axes[0].get_title().startswith(title)
    again = tiny.trainer(tmp_path, max_steps=2)
    assert again.plot_memory().axes[0].get_title() == trainer.plot_memory().axes[0].get_title()  # from the folder


def test_figures_of_a_run_are_written_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"label": "as it is", "peak_bytes": 5, "components": {"parameters": 5}}
    monkeypatch.setattr(profiling, "what_consumes", lambda *given: [entry])  # simulated in tests/memory
    trainer = tiny.trainer(tmp_path, max_steps=2, rehearse=True, model=tiny.make_model(num_hidden_layers=2))
    trainer.train()
    names = {path.relative_to(tmp_path).as_posix() for path in write_figures(trainer)}
    assert names == {
        f"figures/{name}"
        for name in ("loss.png", "lengths.png", "memory.png", "memory.svg", "settings.png", "settings.svg")
    }
    assert all((tmp_path / name).stat().st_size > 1_000 for name in names)
    kept = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert kept["settings"][0]["label"] == "as it is"


def test_without_a_rehearsal_memory_is_foreseen_and_the_figure_says_that_it_was_not_measured(tmp_path: Path) -> None:
    for trains in (False, True):
        trainer = tiny.trainer(tmp_path / str(trains), max_steps=1, rehearse=False)
        before = tiny.weights(trainer.model)
        if trains:
            trainer.train()
        else:
            trainer.plot_loss()
        figure: Any = trainer.plot_memory(tmp_path / f"{trains}.png")
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert any("largest: foreseen" in text and "not measured" in text for text in texts)
        assert (tmp_path / f"{trains}.png").stat().st_size > 1_000
        if not trains:  # looking at a figure trains nothing
            assert all(torch.equal(weight, before[name]) for name, weight in tiny.weights(trainer.model).items())
    names = {path.name for path in write_figures(trainer)}
    assert names == {"loss.png", "lengths.png", "memory.png", "memory.svg"}
    page = write_run_page(tmp_path / "True").read_text(encoding="utf-8")
    assert "figures/memory.svg" in page
    assert "| not measured: there was no rehearsal |" in page


def test_what_is_foreseen_without_a_rehearsal_is_what_the_plan_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    trainer = tiny.trainer(tmp_path, max_steps=1, rehearse=False)
    trainer.train()
    found = predicted_memory(trainer)
    assert found["foreseen"]["peak_bytes"] == trainer.plan.predicted_bytes["peak"]


def test_where_nothing_is_known_it_is_said(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, rows=tiny.stream(tiny.texts()), max_steps=1)
    assert trainer.plot_memory().axes[0].get_title().startswith("Memory over one step: 128 tokens")
    with pytest.raises(ConfigurationError, match="stream"):
        trainer.plot_lengths()
    with pytest.raises(ConfigurationError, match="stream"):
        trainer.profile()
    own = tiny.trainer(tmp_path, max_steps=1, compute_loss_func=lambda outputs, labels, num_items_in_batch: 0)
    with pytest.raises(ConfigurationError, match="an own loss or data_collator decides"):
        own.plot_memory()
