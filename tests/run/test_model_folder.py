"""Nothing outside of a model's folder is copied into the run folder or pushed, whatever the folder's names lead to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sartor import SFTConfig, SFTTrainer
from sartor.errors import ModelError, SartorError
from sartor.run import model_folder
from tests.hf import tiny
from tests.hub_server import TOKEN, USER, HubServer
from tests.report import conftest

hub, hub_server = conftest.hub, conftest.hub_server

SECRET = "the-private-key-of-alice"
CONFIGURATION = """from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the user's own, outside of the model's."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "key.txt").write_text(SECRET)
    (folder / "key.jinja").write_text(SECRET)
    (folder / "key.py").write_text(f"KEY = '{SECRET}'\n")
    (folder / "key.json").write_text(json.dumps({"auth": SECRET}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny.make_model().save_pretrained(folder)
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    return folder


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def link(path: Path, target: Path) -> None:
    if path.exists():
        path.unlink()
    path.symlink_to(target)


def own_code(base: Path, private: Path, modeling: str = MODELING) -> None:
    (base / "configuration_own.py").write_text(CONFIGURATION)
    (base / "modeling_own.py").write_text(modeling)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    change(base / "config.json", auto_map=auto_map, model_type="own", architectures=["OwnModel"])


def code_that_is_a_link(base: Path, private: Path) -> None:
    own_code(base, private, MODELING + "from . import key\n")
    with (private / "key.py").open("a") as file:
        file.write(MODELING)
    (base / "modeling_own.py").unlink()
    link(base / "modeling_own.py", private / "key.py")


def templates_behind_a_link(base: Path, private: Path) -> None:
    (base / "additional_chat_templates").symlink_to(private)


def template_that_is_a_link(base: Path, private: Path) -> None:
    (base / "additional_chat_templates").mkdir()
    link(base / "additional_chat_templates" / "tools.jinja", private / "key.txt")


def weights_of_another_model(base: Path, private: Path) -> None:
    (base / "model.safetensors").rename(private / "model.safetensors")
    names = tiny.make_model().state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../private/model.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def other_file_for_the_tokenizer(base: Path, private: Path) -> None:
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["vocab"][SECRET] = 99
    (private / "tokenizer.4.0.0.json").write_text(json.dumps(content))
    change(base / "tokenizer_config.json", fast_tokenizer_files=["../private/tokenizer.4.0.0.json"])


PLANTS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "chat template": (
        "chat_template.jinja",
        lambda base, private: link(base / "chat_template.jinja", private / "key.txt"),
    ),
    "relative link": (
        "chat_template.jinja",
        lambda base, private: link(base / "chat_template.jinja", Path("../private/key.txt")),
    ),
    "further template": ("tools.jinja", template_that_is_a_link),
    "folder of templates": ("key.jinja", templates_behind_a_link),
    "generation config": (
        "generation_config.json",
        lambda base, private: link(base / "generation_config.json", private / "key.json"),
    ),
    "tokenizer's config": (
        "tokenizer_config.json",
        lambda base, private: link(base / "tokenizer_config.json", private / "key.json"),
    ),
    "special tokens": (
        "special_tokens_map.json",
        lambda base, private: link(base / "special_tokens_map.json", private / "key.json"),
    ),
    "auto_map, absolute": (
        "config.json",
        lambda base, private: change(base / "config.json", auto_map={"AutoModel": f"{private}/key.Own"}),
    ),
    "auto_map, tokenizer": (
        "tokenizer_config.json",
        lambda base, private: change(
            base / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, f"{private}/key.Own"]}
        ),
    ),
    "auto_map, upwards": (
        "config.json",
        lambda base, private: change(base / "config.json", auto_map={"AutoModel": "../private/key.Own"}),
    ),
    "vocabulary": (
        "tokenizer_config.json",
        lambda base, private: change(base / "tokenizer_config.json", vocab_file=str(private / "key.txt")),
    ),
    "versioned tokenizer": ("tokenizer_config.json", other_file_for_the_tokenizer),
    "code that is a link": ("modeling_own.py", code_that_is_a_link),
    "code that names a file": (
        "modeling_own.py",
        lambda base, private: own_code(base, private, f"{MODELING}'''\nfrom .{private}/key import KEY\n'''\n"),
    ),
    "weights": ("model.safetensors.index.json", weights_of_another_model),
}


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", PLANTS)
def test_nothing_outside_of_a_models_folder_reaches_the_run_folder_or_the_hub(
    hub: HubServer, base: Path, private: Path, tmp_path: Path, kind: str
) -> None:
    named, plant = PLANTS[kind]
    plant(base, private)
    run = tmp_path / "run"
    args = SFTConfig(str(run), hub_token=TOKEN, hub_model_id=f"{USER}/model", trust_remote_code=True, report_to=[])
    told: Exception | None = None
    try:
        SFTTrainer(model=str(base), args=args, train_dataset=[{"text": "the moon is old"}]).push_to_hub()
    except SartorError as error:
        told = error
    assert not any(SECRET.encode() in body for body in hub.uploaded_bytes())
    assert SECRET.encode() not in everything_in(run)
    assert isinstance(told, ModelError)
    assert named in str(told)
    assert str(base) in str(told)


def test_models_and_tokenizers_that_were_loaded_by_the_user_are_looked_at_too(
    base: Path, private: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    link(base / "chat_template.jinja", private / "key.txt")
    rows, args = [{"text": "the moon is old"}], SFTConfig(str(tmp_path / "run"), report_to=[])
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        SFTTrainer(tiny.make_model(), args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        SFTTrainer(model, args, train_dataset=rows, processing_class=tiny.make_tokenizer())


def test_an_adapters_folder_and_its_base_are_looked_at(base: Path, private: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2)).save_pretrained(adapter)
    rows, args = [{"text": "the moon is old"}], SFTConfig(str(tmp_path / "run"), report_to=[])
    link(adapter / "chat_template.jinja", private / "key.txt")
    with pytest.raises(ModelError, match=f"{adapter} leads"):
        SFTTrainer(str(adapter), args, train_dataset=rows)
    (adapter / "chat_template.jinja").unlink()
    link(base / "chat_template.jinja", private / "key.txt")
    with pytest.raises(ModelError, match=f"{base} leads"):
        SFTTrainer(str(adapter), args, train_dataset=rows)


def test_a_template_is_not_taken_from_behind_a_link(base: Path, private: Path, tmp_path: Path) -> None:
    link(base / "chat_template.jinja", private / "key.txt")
    args = SFTConfig(str(tmp_path / "run"), chat_template_path=str(base), report_to=[])
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        SFTTrainer(
            tiny.make_model(), args, train_dataset=[{"text": "the moon"}], processing_class=tiny.make_tokenizer()
        )


def test_links_that_stay_at_home_and_weights_elsewhere_are_fine(base: Path, private: Path, tmp_path: Path) -> None:
    (base / "template").write_text("{{ messages }}")
    link(base / "chat_template.jinja", Path("template"))
    (base / "model.safetensors").rename(private / "model.safetensors")
    link(base / "model.safetensors", private / "model.safetensors")
    change(
        base / "tokenizer_config.json",
        vocab_file="/nowhere/vocab.json",
        special_tokens_map_file=str(private / "key.json"),
    )
    change(base / "config.json", auto_map={"AutoModel": "modeling_own.Own", "AutoConfig": "other/repo--far.Far"})
    model_folder.check(base)
    (tmp_path / "linked").symlink_to(base)
    model_folder.check(tmp_path / "linked")
    model_folder.check("someone/no-folder")


def test_a_snapshot_of_the_hubs_cache_is_links_to_blobs_and_fine(base: Path, private: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--base"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in base.iterdir():
        path.rename(repository / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    model_folder.check(snapshot)
    link(repository / "blobs" / "blob-chat_template.jinja", private / "key.txt")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        model_folder.check(snapshot)
