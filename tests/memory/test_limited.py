"""Under a real limit the plan chooses, nothing dies, and the weights are the same; fixed settings die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory.limited import LENGTHS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone"),
]

FIXED_MB = 1_980
"""What trl's settings need on these data: measured without a limit, above what stands before training."""
TIGHT_MB = 280
"""A step without recomputation needs 310, one that recomputes every layer 250."""
TOLERANCE = 1e-6


def train(folder: Path, library: str, room_mb: int) -> dict[str, Any]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory.limited", str(folder), library, str(room_mb)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "said": done.stdout + done.stderr}


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlimited") / "run"
    train(folder, "sartor", 0)
    return folder / "weights.pt"


@pytest.mark.parametrize("room_mb", [FIXED_MB * share // 100 for share in (60, 80, 100)])
def test_the_same_data_train_under_a_limit_with_the_same_weights(tmp_path: Path, unlimited: Path, room_mb: int) -> None:
    ended = train(tmp_path / "run", "sartor", room_mb)
    assert (ended["error"], ended["steps"], ended["incidents"]) == (None, 2, [])
    _assert_agree(tmp_path / "run" / "weights.pt", unlimited)


def test_under_a_tight_limit_the_plan_chooses_less_and_it_is_enough(tmp_path: Path, unlimited: Path) -> None:
    """What the plan says fits is neither refused by the guard nor too much for the heap."""
    ended = train(tmp_path / "run", "sartor", TIGHT_MB)
    assert (ended["error"], ended["steps"], ended["incidents"]) == (None, 2, [])
    tokens, recomputes, _ = ended["setting"]
    assert (tokens, recomputes) == (max(LENGTHS), True), "unlimited nothing is recomputed"
    _assert_agree(tmp_path / "run" / "weights.pt", unlimited)


@pytest.mark.parametrize("share", [60, 80])
def test_fixed_settings_die_on_the_same_data(tmp_path: Path, share: int) -> None:
    pytest.importorskip("trl")
    ended = train(tmp_path / "run", "trl", FIXED_MB * share // 100)
    assert "allocate memory" in ended["error"]
    assert ended["steps"] == 0


def _assert_agree(found: Path, expected: Path) -> None:
    ours, theirs = torch.load(found), torch.load(expected)
    for name, value in theirs.items():
        assert float((ours[name] - value).norm()) <= TOLERANCE * float(value.norm()), name
