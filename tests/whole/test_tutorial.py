"""The Hugging Face tutorial's code cells, verbatim but for the import, against a Hub on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.whole.conftest import environment

NOTEBOOK = Path(__file__).parents[2].parent / "shared" / "tools" / "notebook.py"


def test_every_cell_runs_and_the_pushed_model_comes_back(tmp_path: Path) -> None:
    if not NOTEBOOK.exists():
        pytest.skip(f"{NOTEBOOK} is not there")
    variables = environment(TMPDIR=str(tmp_path))
    variables.pop("HF_HUB_OFFLINE")
    done = subprocess.run(
        [sys.executable, NOTEBOOK, "sartor", "--rows", "16"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "12 of 12 cells ran" in done.stdout
    assert "card names data set and base model: True" in done.stdout
    pushed = next(line for line in done.stdout.splitlines() if line.startswith("pushed:"))
    assert "model.safetensors" in pushed
    for unwanted in (".bin", ".pt'", ".jsonl'", "optimizer"):
        assert unwanted not in pushed.replace("metrics.jsonl", "")
