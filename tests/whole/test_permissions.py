"""Files and folders of a run have the permissions that the user's umask leaves to new ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.whole.conftest import Commands


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_everything_that_a_run_writes_has_the_users_permissions(
    umask: int, commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = commands(
        "train", "--model", model, "--data", rows, "--map", "user={ask}", "--map", "assistant={say}", "--use_cpu",
        "--eos_token", "<|im_end|>", "--output_dir", folder, "--report_to", "tensorboard",
        "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--eval_data", rows, "--eval_strategy",
        "steps", "--eval_steps", "1", "--sample_prompts", "What is blue?", "--use_peft", str(umask == 0o077),
        umask=umask,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    found = [folder, *folder.rglob("*")]
    names = {path.name for path in found}
    assert {
        "checkpoint-1",
        "metrics.jsonl",
        "plan.json",
        "report.md",
        "README.md",
        "samples.md",
        "sft_config.json",
    } <= names
    assert any(path.suffix == ".safetensors" for path in folder.iterdir())
    for path in found:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, (path, oct(path.stat().st_mode))


def test_a_private_file_of_the_users_stays_private(tmp_path: Path) -> None:
    from sartor.report.files import share_weights

    for name in ("model.safetensors", "notes.txt"):
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY, 0o600))
    share_weights(tmp_path)
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o600
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == fresh.stat().st_mode
