from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import traceback
from concurrent.futures import Future
from pathlib import Path

import pytest

from sartor.errors import HubError, RunFolderError, SartorWarning
from sartor.report import hub as pushing
from sartor.report.transfer import LINE
from tests.hub_server import TOKEN, USER, HubServer
from tests.report.models import make_checkpoint, make_model, make_run

REPOSITORY = f"{USER}/model"
LEAVES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "metrics.jsonl",
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "model")


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_push_takes_what_from_pretrained_reads_and_metrics_and_nothing_else(hub: HubServer, run_folder: Path) -> None:
    before = sorted(path.as_posix() for path in run_folder.rglob("*"))
    commit = pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)

    assert commit.oid == hub.repositories["models", REPOSITORY].branches["main"][-1].oid
    assert hub.messages(REPOSITORY)[-1] == "End of training"
    files = hub.files(REPOSITORY)
    assert set(files) == LEAVES
    assert all(
        files[name] == (run_folder / name).read_bytes() for name in LEAVES - {"config.json", "tokenizer_config.json"}
    )
    assert not any(b"private" in body for body in hub.uploaded_bytes())
    assert sorted(path.as_posix() for path in run_folder.rglob("*")) == before


def test_the_token_travels_in_no_file_body_or_run_folder(hub: HubServer, run_folder: Path) -> None:
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert any(TOKEN in request.headers.get("authorization", "") for request in hub.requests)
    assert not any(TOKEN.encode() in body for body in hub.uploaded_bytes())
    assert TOKEN.encode() not in everything_in(run_folder)


@pytest.mark.parametrize("holder", ["README.md", "config.json", "metrics.jsonl"])
def test_a_file_with_the_token_in_it_stops_the_push_before_anything_leaves(
    hub: HubServer, run_folder: Path, holder: str
) -> None:
    (run_folder / holder).write_text(json.dumps({"note": f"x{TOKEN}x"}) + "\n")
    with pytest.raises(HubError, match="contains your access token") as caught:
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, create=False)
    assert holder in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not any(request.method in ("POST", "PUT") for request in hub.requests)


def test_the_pushed_model_loads_back_in_another_process_and_answers(
    hub: HubServer, hub_environment: dict[str, str], run_folder: Path
) -> None:
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    script = (
        "import torch, sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "inputs = tokenizer.apply_chat_template(\n"
        "    [{'role': 'user', 'content': 'hello there'}], add_generation_prompt=True, return_tensors='pt')\n"
        "print(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist())\n"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", script, source], env=hub_environment, capture_output=True, text=True, check=True
        ).stdout
        for source in (REPOSITORY, str(run_folder))
    ]
    assert answers[0] == answers[1]
    assert answers[0].startswith("[2, 3, 5, 6, 1, 2, 4")


def test_an_adapter_on_a_hub_model_loads_back_with_its_base(
    hub: HubServer, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hub.put_folder("someone/base", make_model(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
    adapted.peft_config["default"].base_model_name_or_path = "someone/base"
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    pushing.push_folder(tmp_path / "adapter", f"{USER}/adapter", token=TOKEN, ignore_patterns=("README.md",))
    assert set(hub.files(f"{USER}/adapter")) == {"adapter_config.json", "adapter_model.safetensors"}

    script = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        "print(sum('lora_' in n for n, _ in AutoModelForCausalLM.from_pretrained(sys.argv[1]).named_parameters()))\n"
    )
    command = [sys.executable, "-c", script, f"{USER}/adapter"]
    done = subprocess.run(command, env=hub_environment, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"


def test_further_chat_templates_go_with_the_tokenizer(hub: HubServer, run_folder: Path) -> None:
    (run_folder / "additional_chat_templates").mkdir()
    (run_folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (run_folder / "additional_chat_templates" / "notes.txt").write_text("private")
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == {*LEAVES, "additional_chat_templates/tools.jinja"}


def test_further_adapters_go_with_the_first_where_the_run_made_them_and_checkpoints_do_not(
    hub: HubServer, tmp_path: Path
) -> None:
    adapter = {"adapter_config.json": "{}", "adapter_model.safetensors": "numbers", "optimizer.safetensors": "private"}
    for folder in (tmp_path, tmp_path / "second", tmp_path / "checkpoint-10"):
        folder.mkdir(exist_ok=True)
        for name, content in adapter.items():
            (folder / name).write_text(content)
    leaves = {"adapter_config.json", "adapter_model.safetensors"}
    pushing.push_folder(tmp_path, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == leaves
    made = {f"{prefix}{name}" for prefix in ("", "second/") for name in adapter}
    pushing.push_folder(tmp_path, REPOSITORY, token=TOKEN, made=made)
    assert set(hub.files(REPOSITORY)) == leaves | {f"second/{name}" for name in leaves}


def test_the_folder_of_a_local_base_model_is_not_told(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "customer-acme" / "base"
    (run_folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(secret), "r": 8}))
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert json.loads(hub.files(REPOSITORY)["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 8}
    assert not any(b"customer-acme" in body for body in hub.uploaded_bytes())


def test_metrics_with_text_in_them_stay_here_and_that_is_said(hub: HubServer, run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text('{"loss": "NaN", "step": 1}\n{"answer": "a private row", "step": 2}\n')
    with pytest.warns(SartorWarning, match=r"is not pushed.*answer"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == LEAVES - {"metrics.jsonl"}


def test_code_that_a_model_brings_goes_with_it(hub: HubServer, run_folder: Path) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    auto_map = {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "other/repo--configuration_far.Far"}
    (run_folder / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    (run_folder / "modeling_own.py").write_text("from .layers_own import Layer\n")
    (run_folder / "layers_own.py").write_text("class Layer: ...\n")
    pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == {*LEAVES, "modeling_own.py", "layers_own.py"}


def test_a_push_goes_to_the_branch_that_was_asked_for(hub: HubServer, run_folder: Path) -> None:
    from huggingface_hub import HfApi

    repo_id = pushing.open_repository(run_folder, token=TOKEN)
    HfApi(endpoint=hub.url, token=TOKEN).create_branch(repo_id, branch="dev")
    pushing.push_folder(run_folder, repo_id, token=TOKEN, revision="dev", commit_message="to dev")
    assert hub.messages(repo_id, "dev") == ["initial", "to dev"]
    assert hub.messages(repo_id, "main") == ["initial"]
    with pytest.raises(HubError, match="there is no such branch"):
        pushing.push_folder(run_folder, repo_id, token=TOKEN, revision="nowhere")


def test_a_push_that_does_not_block_gives_a_future_with_the_commit(hub: HubServer, run_folder: Path) -> None:
    future = pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, blocking=False)
    assert isinstance(future, Future)
    assert future.result(timeout=30).oid == hub.repositories["models", REPOSITORY].branches["main"][-1].oid
    assert not list(run_folder.glob(".push-*"))


def test_saving_again_while_a_push_waits_does_not_change_what_is_pushed(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sartor.report.staging._COPIED_BELOW_BYTES", 0)  # so that the weights are linked
    weights = (run_folder / "model.safetensors").read_bytes()
    gate = block_background_jobs()
    future = pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, blocking=False)
    make_model(run_folder, seed=3)
    gate.set()
    future.result(timeout=30)
    assert (run_folder / "model.safetensors").read_bytes() != weights
    assert hub.files(REPOSITORY)["model.safetensors"] == weights


def test_a_failed_push_in_the_background_raises_the_explained_error_from_its_future(
    hub: HubServer, run_folder: Path
) -> None:
    hub.fail("POST", r"/commit/", 403, f"not with {TOKEN}")
    future = pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, blocking=False)
    error = future.exception(timeout=30)
    assert isinstance(error, HubError)
    assert TOKEN not in "".join(traceback.format_exception(error))


def test_names_are_resolved_as_transformers_does(hub: HubServer, tmp_path: Path) -> None:
    assert pushing.repository_name(tmp_path / "runs" / "my-model") == "my-model"
    assert pushing.repository_name(tmp_path, "org/other") == "org/other"
    assert pushing.open_repository(tmp_path / "my-model", token=TOKEN, private=True) == f"{USER}/my-model"
    assert hub.repositories["models", f"{USER}/my-model"].private
    assert pushing.open_repository(tmp_path, f"{USER}/my-model", token=TOKEN) == f"{USER}/my-model"  # 409: is there


@pytest.mark.parametrize("name", ["my model", "a/b/c", "a--b", "..", "", "x.git", "ü", "-x", "x" * 97])
def test_a_name_that_no_repository_can_have_is_refused_before_any_request(hub: HubServer, name: str) -> None:
    with pytest.raises(HubError, match="hub_model_id"):
        pushing.repository_name("run", name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "advice"),
    [
        ("POST", "/api/repos/create", 401, "hf auth login"),
        ("POST", "/api/repos/create", 403, "write access"),
        ("POST", "/api/repos/create", 500, "problem of its own"),
        ("POST", "/preupload/", 404, "no such repository"),
        ("POST", "/commit/", 401, "hf auth login"),
        ("POST", "/commit/", 403, "write access"),
        ("POST", "/commit/", 409, "Push again"),
        ("POST", "/commit/", 412, "has changed meanwhile"),
        ("POST", "/commit/", 400, "did not take the content"),
        ("POST", "/api/validate-yaml", 400, "does not take the model card"),
    ],
)
def test_each_refusal_says_what_to_do_and_never_the_token(
    hub: HubServer,
    run_folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    method: str,
    path: str,
    status: int,
    advice: str,
) -> None:
    (run_folder / "README.md").write_text("---\ntags: [a]\n---\n")
    before = everything_in(run_folder)
    another = "hf_" + "anotherToken" * 3
    hub.fail(method, path, status, f"{TOKEN} is not good enough, nor is {another}")
    with pytest.raises(HubError, match=advice) as caught:
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in told
    assert another not in told
    assert str(run_folder) in str(caught.value)
    assert everything_in(run_folder) == before
    assert not list(run_folder.glob(".push-*"))


def test_somebody_elses_namespace_is_refused_with_advice(hub: HubServer, run_folder: Path) -> None:
    with pytest.raises(HubError, match=r"(?s)create the repository other/model.*write access"):
        pushing.push_folder(run_folder, "other/model", token=TOKEN)


def test_a_hub_that_is_gone_is_told_as_such(hub: HubServer, run_folder: Path) -> None:
    hub.stop()
    with pytest.raises(HubError, match=rf"{hub.url} cannot be reached.*HF_ENDPOINT"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)


def test_offline_mode_is_told_by_the_name_of_its_variable(
    hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN, create=False)
    assert hub.requests == []


def test_without_any_token_the_way_to_one_is_told(hub: HubServer, run_folder: Path) -> None:
    with pytest.raises(HubError, match="there is no token"):
        pushing.push_folder(run_folder, REPOSITORY)
    assert hub.requests == []


def test_a_folder_without_weights_is_not_pushed(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match="holds no weights"):
        pushing.push_folder(run_folder, REPOSITORY, token=TOKEN)
    with pytest.raises(RunFolderError, match="is not a folder"):
        pushing.push_folder(tmp_path / "nowhere", REPOSITORY, token=TOKEN)
    assert hub.requests == []


class TestPushesDuringTraining:
    @pytest.mark.parametrize(
        ("strategy", "folder"),
        [("every_save", None), ("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-20")],
    )
    def test_a_checkpoint_becomes_the_repositorys_model(
        self, hub: HubServer, run_folder: Path, strategy: str, folder: str | None
    ) -> None:
        checkpoint = make_checkpoint(run_folder / "checkpoint-20", step=20, seed=2)
        (run_folder / "README.md").write_text("---\ntags: [a]\n---\n# card\n")
        repo_id = pushing.open_repository(run_folder, token=TOKEN)
        pushes = pushing.BackgroundPushes()
        message = "Training in progress, step 20"
        assert pushes.push_checkpoint(
            checkpoint, run_folder, repo_id, strategy=strategy, commit_message=message, token=TOKEN
        )
        pushes.wait_until_done()

        files = hub.files(repo_id)
        assert {name for name in files if "/" not in name} == {*LEAVES, "README.md"}
        assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
        assert {name.split("/")[0] for name in files if "/" in name} == ({folder} if folder else set())
        assert hub.messages(repo_id)[1] == message
        if folder:
            assert files[f"{folder}/model.safetensors"] == files["model.safetensors"]
            state = json.loads(files[f"{folder}/trainer_state.json"])
            assert state["best_model_checkpoint"] == "checkpoint-5"
            assert state["log_history"] == [{"loss": 2.0, "step": 20}]
        assert not any(b"private" in body for body in hub.uploaded_bytes())

    def test_at_the_end_means_nothing_before(self, hub: HubServer, run_folder: Path) -> None:
        pushes = pushing.BackgroundPushes()
        assert not pushes.push_checkpoint(
            run_folder / "checkpoint-10", run_folder, REPOSITORY, strategy="end", commit_message="m", token=TOKEN
        )
        assert hub.requests == []

    def test_a_checkpoint_deleted_while_it_waits_is_pushed_whole(
        self, hub: HubServer, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sartor.report.staging._COPIED_BELOW_BYTES", 0)  # so that the weights are linked
        checkpoint = run_folder / "checkpoint-10"
        weights = (checkpoint / "model.safetensors").read_bytes()
        repo_id = pushing.open_repository(run_folder, token=TOKEN)
        gate = block_background_jobs()
        pushes = pushing.BackgroundPushes()
        pushes.push_checkpoint(checkpoint, run_folder, repo_id, strategy="every_save", commit_message="m", token=TOKEN)
        shutil.rmtree(checkpoint)
        gate.set()
        pushes.wait_until_done()
        assert hub.files(repo_id)["model.safetensors"] == weights

    def test_while_one_is_under_way_the_next_is_left_out_unless_always(self, hub: HubServer, run_folder: Path) -> None:
        repo_id = pushing.open_repository(run_folder, token=TOKEN)
        gate = block_background_jobs()
        pushes = pushing.BackgroundPushes()
        other = make_checkpoint(run_folder / "checkpoint-20", step=20, seed=2)
        started = [
            pushes.push_checkpoint(
                other if always else run_folder / "checkpoint-10",  # the same files again would make no commit
                run_folder,
                repo_id,
                strategy="every_save",
                commit_message=f"push {number}",
                always_push=always,
                token=TOKEN,
            )
            for number, always in enumerate([False, False, True])
        ]
        assert started == [True, False, True]
        assert not pushes.is_done()
        gate.set()
        pushes.wait_until_done()
        assert pushes.is_done()
        assert hub.messages(repo_id) == ["initial", "push 0", "push 2"]

    def test_a_failure_is_told_once_and_training_goes_on(self, hub: HubServer, run_folder: Path) -> None:
        repo_id = pushing.open_repository(run_folder, token=TOKEN)
        hub.fail("POST", r"/commit/", 403, f"not with {TOKEN}")
        pushes = pushing.BackgroundPushes()
        pushes.push_checkpoint(
            run_folder / "checkpoint-10", run_folder, repo_id, strategy="every_save", commit_message="m", token=TOKEN
        )
        with pytest.warns(SartorWarning, match="A push during training failed") as told:
            pushes.wait_until_done()
        ours = [str(warning.message) for warning in told if warning.category is SartorWarning]
        assert len(ours) == 1
        assert TOKEN not in ours[0]
        assert pushes.is_done()


def block_background_jobs() -> threading.Event:
    """Hold the pushes in the background until the event is set."""
    gate = threading.Event()
    LINE.add(lambda is_given_up: gate.wait(30))
    return gate


def test_the_licence_of_the_base_is_read_from_its_page(hub: HubServer) -> None:
    hub.put("someone/base", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    hub.put("someone/bare", {"config.json": b"{}"})
    assert pushing.base_model_license("someone/base") == "apache-2.0"
    assert pushing.base_model_license("someone/bare") is None
    assert pushing.base_model_license("someone/missing") is None
    assert pushing.base_model_license(os.getcwd()) is None


def test_a_data_set_from_the_hub_carries_its_name_as_it_is_spelt_through_map_and_filter(
    hub_server: HubServer, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("Someone/RickScience-v2", "Someone/other"):
        hub_server.put(name, {"train.jsonl": b'{"text": "%s"}\n{"text": "b"}\n' % name.encode()}, kind="datasets")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    script = (
        "import sys\n"
        "from datasets import Dataset, load_dataset\n"
        "from sartor.report.card import dataset_hub_id\n"
        "load_dataset('Someone/other', split='train')\n"
        "rows = load_dataset('Someone/RickScience-v2', split='train')\n"
        "changed = rows.map(lambda row: {'n': 1}).filter(lambda row: row['text'] == 'b').shuffle(seed=0)\n"
        "local = load_dataset('json', data_files=sys.argv[1], split='train')\n"
        "streamed = load_dataset('Someone/other', split='train', streaming=True)\n"
        "for data in (rows, changed, local, streamed, Dataset.from_list([{'a': 1}])): print(dataset_hub_id(data))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, env=hub_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Someone/RickScience-v2"] * 2 + ["None"] * 3


def test_the_card_of_a_training_shows_its_figures_and_they_come_along(hub: HubServer, tmp_path: Path) -> None:
    from tests.hf import tiny

    trainer = tiny.trainer(tmp_path / "run", max_steps=2, hub_token=TOKEN, hub_model_id=REPOSITORY)
    trainer.train()
    (tmp_path / "run" / "figures").mkdir()
    (tmp_path / "run" / "figures" / "private.png").write_bytes(b"private")
    trainer.push_to_hub()
    files = hub.files(REPOSITORY)
    shown = {"figures/loss.png", "figures/lengths.png", "figures/memory.png"}
    assert {name for name in files if name.startswith("figures/")} == shown
    card = files["README.md"].decode()
    for name in shown:
        assert files[name].startswith(b"\x89PNG")
        assert f"]({name})" in card


def test_figures_that_were_not_drawn_are_not_shown(tmp_path: Path) -> None:
    from tests.hf import tiny

    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.create_model_card()
    assert "figures/" not in (tmp_path / "README.md").read_text(encoding="utf-8")
