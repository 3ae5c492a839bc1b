"""What leaves in a push: regular files that lie in the run folder, and only those that this run has written."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sartor.errors import RunFolderError, SartorWarning
from sartor.report import hub as pushing
from sartor.report import staging
from tests.hub_server import TOKEN, USER, HubServer
from tests.report.models import make_checkpoint, make_model

REPOSITORY = f"{USER}/model"
SECRET = "the-private-key-of-alice"
MODEL = {"model.safetensors", "config.json", "generation_config.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    for name in ("key.txt", "key.py", "tools.jinja", "loss.png", "adapter_model.safetensors"):
        (folder / name).write_text(SECRET)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def received(hub: HubServer) -> bool:
    return any(SECRET.encode() in body for body in hub.uploaded_bytes())


def plant_links(folder: Path, private: Path) -> None:
    """Whatever a push takes by name, as a link or behind one."""
    for name in ("merges.txt", "vocab.json", "special_tokens_map.json", "preprocessor_config.json", "spiece.model"):
        (folder / name).symlink_to(private / "key.txt")
    (folder / "added_tokens.json").symlink_to("../private/key.txt")
    (folder / "additional_chat_templates").symlink_to(private)
    (folder / "figures").symlink_to(private)
    (folder / "second").symlink_to(private)
    (folder / "code.py").symlink_to(private / "key.py")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {
        "AutoModel": f"{private}/key.Own",
        "AutoConfig": "../private/key.Own",
        "AutoTokenizer": ["code.Own", None],
    }
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))


def plant_others(folder: Path) -> None:
    """Files of other runs, and somebody's adapters."""
    for inner in ("my-adapter", "_checkpoint-3.damaged", "_checkpoint-3.abandoned", "checkpoint-3"):
        (folder / inner).mkdir(parents=True)
        for name in ADAPTER:
            (folder / inner / name).write_text("{}" if name.endswith(".json") else SECRET)
    for name in ("model-00002-of-00003.safetensors", "added_tokens.json", "vocab.json", "notes.model"):
        (folder / name).write_text(SECRET)
    (folder / "figures").mkdir()
    (folder / "figures" / "loss.png").write_text(SECRET)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(SECRET)


def test_no_link_is_followed_out_of_a_run_folder(hub: HubServer, private: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    plant_links(folder, private)
    with pytest.warns(SartorWarning, match="is not pushed: it is a link") as told:
        pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == MODEL | TOKENIZER
    assert not received(hub)
    messages = " ".join(str(warning.message) for warning in told)
    for name in ("merges.txt", "added_tokens.json", "tools.jinja", "loss.png", "code.py"):
        assert name in messages


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_file_of_the_model_that_is_a_link_does_not_leave(
    hub: HubServer, private: Path, tmp_path: Path, name: str
) -> None:
    folder = make_model(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(private / "key.txt")
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(RunFolderError):  # without weights
        warnings.simplefilter("always")
        pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert not received(hub)
    assert any(f"{folder / name} is not pushed" in str(warning.message) for warning in told)
    assert bool(hub.repositories) == (name != "model.safetensors")


@pytest.mark.parametrize("outside", ["absolute", "../private/key.safetensors", "link.safetensors"])
def test_an_index_that_names_a_file_outside_is_refused(
    hub: HubServer, private: Path, tmp_path: Path, outside: str
) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (private / "key.safetensors").write_text(SECRET)
    (folder / "link.safetensors").symlink_to(private / "key.safetensors")
    outside = str(private / "key.safetensors") if outside == "absolute" else outside
    (folder / staging.INDEX).write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(RunFolderError, match="which is no file in that folder"):
        pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert hub.requests == []


def test_a_folder_alone_gives_the_model_that_from_pretrained_loads(hub: HubServer, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    plant_others(folder)
    for name in ("added_tokens.json", "vocab.json", "notes.model"):  # that these are stale cannot be told
        (folder / name).unlink()
    pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    own = MODEL | TOKENIZER | {"figures/loss.png", "additional_chat_templates/tools.jinja"}
    assert set(hub.files(REPOSITORY)) == own


def test_no_folder_with_an_adapter_is_taken_for_templates(hub: HubServer, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    for name in ADAPTER:
        (folder / "additional_chat_templates" / name).write_text("{}")
    pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert set(hub.files(REPOSITORY)) == MODEL | TOKENIZER


def test_of_shards_those_leave_that_the_index_names(hub: HubServer, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in (*shards, "model-00003-of-00003.safetensors"):
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / staging.INDEX).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert {name for name in hub.files(REPOSITORY) if name.startswith("model")} == {*shards, staging.INDEX}


def test_a_folder_with_a_model_and_an_adapter_is_not_pushed_by_guess(hub: HubServer, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    for name in ADAPTER:
        (folder / name).write_text("{}")
    with pytest.raises(RunFolderError, match="of another run"):
        pushing.push_folder(folder, REPOSITORY, token=TOKEN)
    assert hub.requests == []


class TestTrainer:
    def run(self, folder: Path, **options: Any) -> Any:
        from tests.hf import tiny

        options = {"max_steps": 1, "hub_token": TOKEN, "hub_model_id": REPOSITORY, **options}
        trainer = tiny.trainer(folder, **options)
        trainer.train()
        return trainer

    def test_a_push_takes_what_this_run_has_written(self, hub: HubServer, private: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        plant_others(folder)
        for name in (*ADAPTER, staging.INDEX, "chat_template.jinja", "README.md"):
            (folder / name).write_text(json.dumps({"of": SECRET}))
        (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 41.0}\n')
        (folder / "merges.txt").symlink_to(private / "key.txt")
        with warnings.catch_warnings():
            warnings.simplefilter("error", SartorWarning)
            self.run(folder).push_to_hub()

        shown = {f"figures/{name}.png" for name in ("loss", "lengths", "memory")}
        files = hub.files(REPOSITORY)
        expected = MODEL | TOKENIZER - {"chat_template.jinja"} | {"README.md", "metrics.jsonl"} | shown
        assert set(files) == expected
        assert not received(hub)
        assert [json.loads(line)["step"] for line in files["metrics.jsonl"].splitlines()] == [1, 1]
        assert b"41.0" not in files["metrics.jsonl"]
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert not list(folder.glob("model-*")) + list(folder.glob("*.index.json"))  # would be read with it
        assert (folder / "my-adapter" / "adapter_model.safetensors").read_text() == SECRET
        assert not list(folder.glob(".*"))

    def test_without_a_training_there_are_no_metrics_and_figures_of_its_own(
        self, hub: HubServer, tmp_path: Path
    ) -> None:
        from tests.hf import tiny

        folder = tmp_path / "run"
        plant_others(folder)
        (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 41.0}\n')
        tiny.trainer(folder, hub_token=TOKEN, hub_model_id=REPOSITORY).push_to_hub()
        assert set(hub.files(REPOSITORY)) == MODEL | TOKENIZER - {"chat_template.jinja"} | {"README.md"}

    def test_of_adapters_those_of_the_model_leave(self, hub: HubServer, tmp_path: Path) -> None:
        from peft import LoraConfig

        folder = make_model(tmp_path / "run")
        whole = (folder / "model.safetensors").read_bytes()
        plant_others(folder)
        trainer = self.run(folder, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))
        trainer.model.add_adapter("second", LoraConfig(r=3, task_type="CAUSAL_LM"))
        trainer.push_to_hub()
        expected = ADAPTER | {f"second/{name}" for name in ADAPTER} | TOKENIZER - {"chat_template.jinja"}
        files = hub.files(REPOSITORY)
        assert {name for name in files if not name.startswith("figures/")} == expected | {"README.md", "metrics.jsonl"}
        assert not received(hub)
        assert (folder / "model.safetensors").read_bytes() == whole  # an adapter does not take a model's place

    def test_a_save_of_the_users_own_is_pushed_as_it_is(self, hub: HubServer, tmp_path: Path) -> None:
        from sartor import SFTTrainer
        from tests.hf import tiny

        class Own(SFTTrainer):
            def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
                super().save_model(output_dir, _internal_call)
                assert output_dir is not None
                (Path(output_dir) / "added_tokens.json").write_text("{}")

        trainer = tiny.trainer(tmp_path / "run", kind=Own, hub_token=TOKEN, hub_model_id=REPOSITORY)
        trainer.push_to_hub()
        assert hub.files(REPOSITORY)["added_tokens.json"] == b"{}"
        trainer.save_model = lambda output_dir=None, _internal_call=False: None
        with pytest.raises(RunFolderError, match="wrote no weights"):
            trainer.push_to_hub()

    def test_a_checkpoint_is_pushed_without_its_neighbours(self, hub: HubServer, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        plant_others(folder)
        options = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_strategy": "all_checkpoints"}
        self.run(folder, **options)
        model = MODEL | TOKENIZER - {"chat_template.jinja"}
        inside = {f"checkpoint-1/{name}" for name in (*model, "trainer_state.json")}
        assert set(hub.files(REPOSITORY)) == model | inside | {"README.md", "metrics.jsonl"}
        assert not received(hub)


def test_no_link_in_a_checkpoint_is_followed(hub: HubServer, private: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoint = make_checkpoint(folder / "checkpoint-3", step=3, seed=0)
    plant_links(checkpoint, private)
    repo_id = pushing.open_repository(folder, REPOSITORY, token=TOKEN)
    pushes = pushing.BackgroundPushes()
    pushes.push_checkpoint(checkpoint, folder, repo_id, strategy="checkpoint", commit_message="m", token=TOKEN)
    pushes.wait_until_done()
    assert "last-checkpoint/model.safetensors" in hub.files(repo_id)
    assert not received(hub)
