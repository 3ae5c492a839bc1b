"""`sartor train --push_to_hub` against a Hub that never answers: exit codes, and a model on the disk."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import TOKEN, HubServer
from tests.whole.conftest import ROOT, Commands, Done, environment

ALL_BUT_CREATE = "^(?!/api/repos/create)"
QUICK = ("--report_to", "none", "--use_cpu", "--eos_token", "<|im_end|>", "--map", "user={ask}", "--map",
         "assistant={say}", "--max_steps", "2", "--push_to_hub", "--hub_model_id", "alice/model")  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def online(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Commands that talk to the server."""
    folder = tmp_path_factory.mktemp("online")
    about = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    variables = environment(**about, HF_HOME=str(folder / "home"), HF_HUB_DISABLE_TELEMETRY="1")
    arguments = [sys.executable, "-m", "tests.whole.command_server"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=ROOT
    ) as server:
        yield Commands(server, folder)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture
def silent(hub: HubServer) -> Iterator[HubServer]:
    hub.misbehave("POST", ALL_BUT_CREATE, "silent")
    yield hub
    hub.misbehaviours.clear()
    hub.requests.clear()


def require_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)
    assert (folder / "trainer_state.json").is_file()
    assert (folder / "report.md").is_file()
    assert not list(folder.glob(".push-*"))


def test_a_push_that_times_out_ends_with_code_2_and_says_how_to_push_again(
    online: Commands, silent: HubServer, model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = online("train", "--model", model, "--data", rows, *QUICK, "--output_dir", folder, "--hub_timeout_s", "1")
    told = done.problem()
    assert "hub_timeout_s" in told
    again = re.search(r'python -c "(.*)"', told.splitlines()[-1])
    assert again is not None, told
    assert f"push_folder('{folder}', 'alice/model')" in again[1]
    require_model(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX'")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_last_push_ends_the_command(
    number: int, code: int, online: Commands, silent: HubServer, model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    sent: list[float] = []

    def is_pushing() -> bool:
        if any("/preupload/" in one.path or "/validate-yaml" in one.path for one in silent.requests):
            time.sleep(0.3)
            sent.append(time.monotonic())
            return True
        return False

    options = ("--hub_strategy", "end", "--output_dir", folder)
    done: Done = online("train", "--model", model, "--data", rows, *QUICK, *options, until=is_pushing, interrupt=number)
    assert time.monotonic() - sent[-1] < 15  # the time-out is 300 s
    assert done.code == code, done
    assert "Traceback" not in done.stderr
    assert f"The model is in {folder}" in done.stderr
    assert "push_folder(" in done.stderr
    require_model(folder)


def test_generation_settings_that_cannot_be_saved_are_found_before_training(
    online: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}', encoding="utf-8")
    folder = tmp_path / "run"
    done = online("train", "--model", base, "--data", rows, *QUICK, "--output_dir", folder)
    assert "generation_config.json" in done.problem()
    assert not list(folder.glob("*.safetensors"))
