"""`sartor profile` on the embedded base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sartor.cli import main as cli

ASSETS = Path(__file__).parents[2] / "src" / "sartor" / "demo" / "assets"


def arguments(folder: Path, *more: str) -> list[str]:
    data = ["--data", str(ASSETS / "conversations.jsonl"), "--map", "user={question}", "--map", "assistant={answer}"]
    return ["profile", "--model", str(ASSETS / "base"), *data, "--use_cpu", "--output_dir", str(folder), *more]


def test_it_shows_components_and_settings_and_writes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "profile"
    assert cli.main(arguments(folder, "--bf16", "false", "--max_steps", "5")) == 0
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
