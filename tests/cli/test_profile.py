"""`sartor profile` on the embedded base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sartor.cli import main as cli

ASSETS = Path(__file__).parents[2] / "src" / "sartor" / "demo" / "assets"


def arguments(folder: Path, *more: str, model: Path = ASSETS / "base") -> list[str]:
    data = ["--data", str(ASSETS / "conversations.jsonl"), "--map", "user={question}", "--map", "assistant={answer}"]
    return ["profile", "--model", str(model), *data, "--use_cpu", "--output_dir", str(folder), *more]


def test_it_shows_components_and_settings_and_writes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "profile", tmp_path / "model"
    shutil.copytree(ASSETS / "base", model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(model, num_hidden_layers=1, layer_types=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    assert cli.main(arguments(folder, "--bf16", "false", "--max_steps", "5", model=model)) == 0
    out = capsys.readouterr().out
    for expected in ("measured", "foreseen", "optimizer states", "gradient_checkpointing=True", "LoRA, rank 16"):
        assert expected in out
    kept = json.loads((folder / "memory.json").read_text(encoding="utf-8"))
    assert kept["measured"]["peak_bytes"] == pytest.approx(kept["foreseen"]["peak_bytes"], rel=0.08)
    assert {path.name for path in folder.iterdir()} >= {"memory.png", "memory.svg", "settings.png", "lengths.png"}
    assert not list(folder.glob("*.safetensors"))


def test_a_runs_folder_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert cli.main(arguments(tmp_path)) == 2
    assert "holds a run" in capsys.readouterr().err
