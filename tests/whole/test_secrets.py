"""No secret that a run was told, in whatever way, is in any file or in anything that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.whole.conftest import ROOT, environment
from tests.whole.secret_run import SECRET


@dataclass(frozen=True)
class Ran:
    folder: Path
    output: str


@pytest.fixture(scope="module")
def ran(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("secrets") / "run"
    variables = {
        "HF_TOKEN": SECRET,
        "WANDB_API_KEY": SECRET,
        "SARTOR_PASSWORD": SECRET,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_CACHE": str(folder.with_name("cache")),
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, "-m", "tests.whole.secret_run", str(model), str(rows), str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(folder, done.stdout + done.stderr)


def test_no_file_and_no_output_of_a_run_shows_a_secret(ran: Ran) -> None:
    files = [path for path in ran.folder.parent.rglob("*") if path.is_file()]
    names = {path.name.split(".")[0] for path in files}
    expected = {"sft_config", "plan", "data", "metrics", "README", "report", "state", "tokenizer_config"}
    assert names >= expected | {"events"}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    for number, line in enumerate(ran.output.splitlines()):
        assert SECRET not in line, (number, line)


def test_what_was_masked_is_said_and_the_rest_is_there(ran: Ran) -> None:
    written = json.loads((ran.folder / "sft_config.json").read_text(encoding="utf-8"))
    assert written["hub_token"] == written["model_init_kwargs"]["token"] == "<masked>"
    assert written["model_init_kwargs"]["proxies"] == {"https": "http://<masked>@127.0.0.1:9"}
    assert written["eos_token"] == "<|im_end|>"
    assert "learning_rate is 1.0, and was" in ran.output
    assert ran.output.count("Traceback (most recent call last)") >= 4
    assert "is-not-there" in ran.output
    saved = json.loads((ran.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["eos_token"] == "<|im_end|>"


def test_another_token_goes_on_from_a_checkpoint(ran: Ran) -> None:
    assert "went on: 3" in ran.output
