"""What is everybody's in a process is after a training, an evaluation or a command as it was before."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.whole.process_state import differences, snapshot

RUNS = {
    "train": "",
    "evaluate": "",
    "train that fails": "ZeroDivisionError",
    "train that is interrupted": "KeyboardInterrupt",
    "train that is resumed": "",
    "train in bf16": "",
    "profile": "",
    "the command env": "",
    "the command chat": "",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one process of its own, in which nothing has been set up by a test."""
    folder = tmp_path_factory.mktemp("process")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.whole.process_state", str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert content.keys() == RUNS.keys()
    return content


@pytest.mark.parametrize("what", RUNS)
def test_a_process_is_left_as_it_was(what: str, found: dict[str, Any]) -> None:
    assert found[what] == {"raised": RUNS[what], "left": {}}


def test_a_snapshot_sees_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AttentionInterface

    before = snapshot()
    assert differences(before, snapshot()) == {}
    monkeypatch.setitem(os.environ, "SOMEBODYS", "1")
    monkeypatch.setitem(AttentionInterface._global_mapping, "somebodys", print)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert set(differences(before, snapshot())) == {"variables", "attention functions", "threads of torch"}
    finally:
        torch.set_num_threads(threads)
