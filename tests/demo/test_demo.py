"""`sartor demo` through the real command line: it trains, and the model learns to answer what it was never asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and model folder of one run with standard output in a pipe, as a script would have it."""
    place = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "sartor.cli.main", "demo", "--seed", "3"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub"), "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "400"}
    result = subprocess.run(
        command, cwd=place, env={**os.environ, **offline}, capture_output=True, text=True, timeout=580, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, place / "runs" / "demo"


def share(output: str, pattern: str) -> float:
    found = re.search(rf"^{pattern}(\d+\.\d) %", output, re.MULTILINE)
    assert found, f"{pattern!r} is not in the output:\n{output}"
    return float(found[1])


def test_held_out_questions_go_from_none_right_to_nearly_all(ran: tuple[str, Path]) -> None:
    output, _ = ran
    assert share(output, "held-out questions right: before ") <= 2
    assert share(output, r"held-out questions right: before \d+\.\d %, after ") >= 80
    assert share(output, "in wordings that no conversation uses: after ") >= 30


def test_everything_promised_is_shown(ran: tuple[str, Path]) -> None:
    output, _ = ran
    headings = [
        "1. The base model, asked a question",
        "2. The conversations",
        "3. Fine-tuning",
        "4. The same questions, before and after",
        "5. The whole examination",
        "6. What it still gets wrong",
        "How to go on",
    ]
    places = [output.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "█" in output  # the histogram
    assert re.search(r"⟦<think>.*</think>.*<\|im_end\|>", output, re.DOTALL)  # the trained tokens of a row
    assert re.search(r"\bloss\b", output)  # training, live
    assert "\x1b[" not in output  # plain where there is no terminal


def test_the_model_left_behind_answers_as_the_demo_said(ran: tuple[str, Path]) -> None:
    from sartor.chat.sample import load
    from sartor.demo.ask import write_answers

    output, folder = ran
    after = re.search(r"4\. The same questions.*?question  (.+?)\n.*?  after  (.+?)\n", output, re.DOTALL)
    assert after
    speaker = load(folder, device="cpu")
    assert write_answers(speaker, [after[1].strip()])[0].startswith(after[2].strip()[:40])


def test_the_folder_is_a_run_like_any_other(ran: tuple[str, Path]) -> None:
    _, folder = ran
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "plan.json", "metrics.jsonl"} <= names
    losses = [
        entry for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))
    ]
    assert losses[-1]["loss"] < losses[0]["loss"] / 4
