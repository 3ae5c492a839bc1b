"""A Hub that accepts and never answers: pushes end with what is safe and what to do, and signals end them at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sartor.errors import HubError, SartorWarning
from sartor.report import hub as pushing
from sartor.report.transfer import LINE
from tests import hub_server
from tests.hf import tiny
from tests.hub_server import TOKEN, USER, HubServer
from tests.report.models import make_checkpoint, make_run

REPOSITORY = f"{USER}/model"
PROMPT_S = 15.0
"""Most of it is the end of an interpreter with torch, on a machine that has much else to do; a push waits 300 s."""
ALL_BUT_CREATE = "^(?!/api/repos/create)"
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX'")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "model")


def grow(run_folder: Path) -> None:
    """Weights larger than what the system takes of a connection that nobody reads, in two files."""
    import torch
    from safetensors.torch import save_file

    for number in (1, 2):
        tensors = {"weight": torch.full((3 << 20,), number, dtype=torch.float32)}
        save_file(tensors, run_folder / f"model-{number:05d}-of-00002.safetensors")
    (run_folder / "model.safetensors").unlink(missing_ok=True)
    names = {f"weight.{number}": f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)}
    index = {"metadata": {}, "weight_map": names}
    (run_folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "path", "how", "step"),
    [
        ("POST", "/api/repos/create", "silent", "create the repository"),
        ("POST", "/preupload/", "silent", "push to"),
        ("POST", "/info/lfs/objects/batch", "silent", "push to"),
        ("PUT", "/_lfs/", "silent", "push to"),
        ("PUT", "/_lfs/", "deaf", "push to"),
        ("POST", "/commit/", "silent", "push to"),
    ],
)
def test_a_hub_that_never_answers_is_given_up_once_and_the_error_says_what_is_safe_and_what_to_do(
    hub: HubServer, run_folder: Path, method: str, path: str, how: str, step: str
) -> None:
    if how == "deaf":
        grow(run_folder)
    hub.misbehave(method, path, how)
    with pytest.raises(HubError, match=step) as caught:
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, timeout_s=1)
    told = str(caught.value)
    for named in (hub.url, "hub_timeout_s", str(run_folder), f"push_folder('{run_folder}', '{REPOSITORY}')"):
        assert named in told
    assert TOKEN not in told
    assert not list(run_folder.glob(".push-*"))
    asked = [one for one in hub.requests if one.method == method and re.search(path, one.path)]
    assert len(asked) <= 1, "it was tried again after it had timed out"


def test_a_slow_hub_is_not_cut(hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_server, "SECONDS_PER_BYTE", 0.02)
    hub.misbehave("POST", "/commit/", "slow")
    started = time.monotonic()
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, timeout_s=1)
    assert time.monotonic() - started > 2
    assert hub.messages(REPOSITORY) == ["initial", "End of training"]


def test_a_connection_that_is_cut_is_tried_again(hub: HubServer, run_folder: Path) -> None:
    hub.misbehave("POST", "/preupload/", "cut", times=1)
    hub.misbehave("PUT", "/_lfs/", "cut", times=1)
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert hub.messages(REPOSITORY) == ["initial", "End of training"]
    hub.misbehave("POST", "/commit/", "cut")  # it may have been taken: huggingface_hub does not try it again
    (run_folder / "metrics.jsonl").write_text('{"loss": 1.0, "step": 11}\n')
    with pytest.raises(HubError, match="connection broke"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)


def test_a_hub_that_is_gone_for_a_moment_is_tried_again(hub: HubServer, run_folder: Path) -> None:
    repo_id = pushing.open_repository(run_folder, token=TOKEN)
    hub.stop()
    future = pushing.push_folder(run_folder, repo_id, token=TOKEN, create=False, blocking=False)
    time.sleep(0.5)  # it has found nobody
    with HubServer(hub.server.server_port) as back:
        back.repositories = hub.repositories
        future.result(timeout=60)  # type: ignore[union-attr]
        assert back.messages(repo_id) == ["initial", "End of training"]


def test_nothing_of_a_push_is_left_in_the_client_of_the_process(hub: HubServer, run_folder: Path) -> None:
    from huggingface_hub import get_session

    hub.misbehave("POST", "/commit/", "silent", times=1)
    before = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    with pytest.raises(HubError):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, timeout_s=1)
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert get_session().event_hooks == before


def test_several_large_files_are_uploaded_without_threads_that_an_exit_waits_for(
    hub: HubServer, run_folder: Path
) -> None:
    grow(run_folder)
    waited_for: list[threading.Thread] = []
    before = set(threading.enumerate())

    def witness(method: str, path: str) -> None:
        waited_for.extend(one for one in threading.enumerate() if one not in before and not one.daemon)

    hub.witnesses.append(witness)
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert waited_for == []
    assert {name for name in hub.files(REPOSITORY) if name.startswith("model-")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_push_that_was_given_up_holds_up_neither_the_next_nor_the_end(hub: HubServer, run_folder: Path) -> None:
    repo_id = pushing.open_repository(run_folder, token=TOKEN)
    hub.misbehave("POST", "/preupload/", "silent", times=1)
    pushes = pushing.BackgroundPushes()
    other = make_checkpoint(run_folder / "checkpoint-20", step=20, seed=2)
    for checkpoint in (run_folder / "checkpoint-10", other):
        pushes.push_checkpoint(
            checkpoint, run_folder, repo_id, strategy="every_save", commit_message="m", always_push=True, token=TOKEN
        )
    wait_until(lambda: any("/preupload/" in request.path for request in hub.requests))
    assert pushes.give_up()
    assert pushes.is_done()
    assert not list(run_folder.glob(".push-*"))
    future = pushing.push_folder(run_folder, repo_id, token=TOKEN, commit_message="next", blocking=False)
    future.result(timeout=30)  # type: ignore[union-attr]
    assert hub.messages(repo_id) == ["initial", "next"]
    wait_until(lambda: not LINE._open)


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_a_training_ends_with_its_model_where_the_hub_never_answers(
    hub: HubServer, tmp_path: Path, strategy: str
) -> None:
    folder = tmp_path / "run"
    there: list[bool] = []

    def witness(method: str, path: str) -> None:
        if len(trainer.state.log_history) > 0 and not trainer.is_in_train:
            there.append((folder / "model.safetensors").is_file() and (folder / "config.json").is_file())

    options: dict[str, Any] = {"push_to_hub": True, "hub_strategy": strategy, "hub_timeout_s": 1, "hub_token": TOKEN}
    options |= {"hub_model_id": REPOSITORY, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = tiny.trainer(folder, **options)
    hub.misbehave("POST", ALL_BUT_CREATE, "silent")
    hub.witnesses.append(witness)
    if strategy == "end":
        trainer.train()
    else:
        with pytest.warns(SartorWarning, match="A push during training failed"):
            trainer.train()
    with pytest.raises(HubError, match="hub_timeout_s") as caught:
        trainer.push_to_hub()
    assert str(folder) in str(caught.value)
    assert there, "no byte was sent"
    assert all(there), "the Hub was asked before the model was on the disk"
    written = load_file(folder / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert value.equal(written[name])


def test_a_model_is_on_the_disk_before_its_repository_is_opened(hub: HubServer, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path / "run", max_steps=1, hub_token=TOKEN, hub_timeout_s=1)
    trainer.train()
    hub.misbehave("POST", "/api/repos/create", "silent")
    with pytest.raises(HubError, match="hub_timeout_s"):
        trainer.push_to_hub()
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_opening_the_repository_at_construction_ends(hub: HubServer, tmp_path: Path) -> None:
    hub.misbehave("POST", "/api/repos/create", "silent")
    begun = time.monotonic()
    with pytest.raises(HubError, match="hub_timeout_s"):
        tiny.trainer(tmp_path / "run", push_to_hub=True, hub_token=TOKEN, hub_timeout_s=1)
    assert time.monotonic() - begun < 40


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from transformers import TrainerCallback
from tests.hf import tiny

class Tells(TrainerCallback):
    def on_step_end(self, args, state, control, **given):
        if state.global_step == 3: print("step 3", flush=True)
    def on_train_end(self, *given, **more):
        print("end", flush=True)

trainer = tiny.trainer({folder!r}, callbacks=[Tells()], push_to_hub=True, hub_model_id="alice/model", {options})
trainer.train()
print("trained", flush=True)
{then}
"""


@contextmanager
def started(
    folder: Path, environment: dict[str, str], options: str, then: str = "trainer.push_to_hub()"
) -> Iterator[subprocess.Popen[str]]:
    root = str(Path(__file__).parents[2])
    script = SCRIPT.format(root=root, folder=str(folder), options=options, then=then)
    environment |= {"PYTHONPATH": os.pathsep.join([f"{root}/src", root])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def seconds_to_end(process: subprocess.Popen[str], number: int) -> float:
    process.send_signal(number)
    begun = time.monotonic()
    process.wait(timeout=60)
    return time.monotonic() - begun


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(process.communicate())


@posix
@pytest.mark.parametrize(
    ("options", "line", "number", "code", "saved"),
    [
        (  # while training waits for the pushes of its checkpoints
            "hub_strategy='all_checkpoints', save_strategy='steps', save_steps=2, max_steps=4",
            "end",
            signal.SIGTERM,
            143,
            "checkpoint-4",
        ),
        (  # in the middle of training, with a push in the background
            "hub_strategy='every_save', save_strategy='steps', save_steps=2, max_steps=100000",
            "step 3",
            signal.SIGINT,
            -signal.SIGINT,
            "checkpoint-",
        ),
        ("hub_strategy='end', max_steps=2", "trained", signal.SIGINT, -signal.SIGINT, "model.safetensors"),
    ],
    ids=["at the end of training", "while training", "in the last push"],
)
def test_a_signal_ends_a_script_whose_push_stands_still(
    hub_server: HubServer,
    hub_environment: dict[str, str],
    tmp_path: Path,
    options: str,
    line: str,
    number: int,
    code: int,
    saved: str,
) -> None:
    hub_server.misbehave("POST", ALL_BUT_CREATE, "silent")
    folder = tmp_path / "run"
    with started(folder, hub_environment, options) as process:
        read_until(process, line)
        wait_until(lambda: any("/validate-yaml" in request.path for request in hub_server.requests))
        time.sleep(0.3)  # into the waiting
        took_s = seconds_to_end(process, number)
        _, told = process.communicate()
    assert process.returncode == code, told
    assert took_s < PROMPT_S
    assert any(path.name.startswith(saved) for path in folder.iterdir()), told


@posix
def test_the_end_of_a_script_waits_for_a_push_in_the_background_and_ctrl_c_ends_that(
    hub_server: HubServer, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    hub_server.misbehave("POST", "/commit/", "silent", times=1)
    options, then = "hub_strategy='end', max_steps=2", "trainer.push_to_hub(blocking=False)"
    with started(tmp_path / "one", hub_environment, options, then) as process:
        read_until(process, "trained")
        wait_until(lambda: any("/commit/" in request.path for request in hub_server.requests))
        time.sleep(1)  # the interpreter has come to its end, and waits
        assert process.poll() is None
        assert seconds_to_end(process, signal.SIGINT) < PROMPT_S
        told = process.communicate()[1]
    assert process.returncode == -signal.SIGINT, told
    assert hub_server.messages("alice/model") == ["initial"]
    with started(tmp_path / "two", hub_environment, options, then) as process:
        told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert hub_server.messages("alice/model") == ["initial", "End of training"]
