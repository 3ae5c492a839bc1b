"""The folder that a thread writes from live tensors is the one that transformers' `save_pretrained` writes.

And where it can't: what is written then is gone on from as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sartor import SFTTrainer
from sartor.run import checkpoint
from sartor.run import model_files as module
from sartor.run.checkpoint_writer import CheckpointWriter
from sartor.run.model_files import ModelFiles, model_files
from sartor.run.snapshot import Snapshot
from tests.engine.architectures import ARCHITECTURES, make
from tests.hf import tiny

TAKEN_APART = {"qwen3_moe", "mixtral"}
"""Architectures whose experts transformers takes apart to save them."""


def own(parameter: torch.nn.Parameter) -> torch.dtype:
    """Published as it is."""
    return parameter.dtype


def written(files: ModelFiles, folder: Path) -> Path:
    files.write_configuration(folder)
    snapshot = Snapshot(dict(files.tensors))
    files.write_weights(folder, snapshot, {name: name for name in files.tensors}, lambda name: False)
    assert not list(snapshot)
    return folder


def same_folder(one: Path, other: Path) -> None:
    """Assert that two model folders hold the same: names of files, configuration, metadata, tensors, dtypes."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        if path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads((other / path.name).read_text()), path.name
            continue
        with safe_open(path, "pt") as mine, safe_open(other / path.name, "pt") as theirs:
            assert mine.metadata() == theirs.metadata()
            assert sorted(mine.keys()) == sorted(theirs.keys())
            for name in mine.keys():  # noqa: SIM118
                left, right = mine.get_tensor(name), theirs.get_tensor(name)
                assert left.dtype == right.dtype, name
                assert torch.equal(left, right), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if each.after is None])
def test_the_folder_is_the_one_that_transformers_writes(
    name: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    size = "50GB" if shards == 1 else sum(tensor.nbytes for tensor in model.state_dict().values()) // 2
    monkeypatch.setattr(module, "_SHARD_SIZE", size)
    files = model_files(model, own)
    assert (files is None) == (name in TAKEN_APART)
    if files is not None:
        written(files, tmp_path / "ours")
        model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
        assert (len(files.shards) > 1) == (shards > 1)
        same_folder(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_rounded_as_they_are_written(tied: bool, tmp_path: Path) -> None:
    model = tiny.make_model(tied=tied)
    files = model_files(model, lambda parameter: torch.bfloat16)
    assert files is not None
    assert not any(files.is_exact(name) for name in files.tensors)
    written(files, tmp_path / "ours")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    same_folder(tmp_path / "ours", tmp_path / "theirs")


def test_a_model_with_a_way_of_its_own_is_left_to_it() -> None:
    class Own(type(tiny.make_model())):  # type: ignore[misc]
        def save_pretrained(self, *given: Any, **more: Any) -> None:
            super().save_pretrained(*given, **more)

    assert model_files(Own(tiny.make_model().config), own) is None
    assert model_files(torch.nn.Linear(2, 2), own) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("only_model", [False, True])
def test_a_checkpoint_of_a_published_model_is_loaded_as_the_model_that_was_trained(
    dtype: torch.dtype, only_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the dtype it is published in; and the state holds float32 masters where that is another, and only there."""
    save = CheckpointWriter.write_rest
    has_files: list[bool] = []

    def noted(writer: CheckpointWriter) -> Any:
        has_files.append(writer.files is not None)
        return save(writer)

    monkeypatch.setattr(CheckpointWriter, "write_rest", noted)
    trainer = tiny.trainer(
        tmp_path, model=tiny.make_model(dtype=dtype), max_steps=2, save_strategy="steps", save_steps=2,
        save_only_model=only_model,
    )  # fmt: skip
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    checkpoint.verify(folder)
    assert has_files == [True]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    if not only_model:
        content = checkpoint.read_state(folder)
        kept = {name: tensor.dtype for name, tensor in content["parameters"].items()}
        names = [name for name, _ in trainer.model.named_parameters()]
        assert kept == ({} if dtype == torch.float32 else dict.fromkeys(names, torch.float32))
        assert content["saved_parameters"] == (names if dtype == torch.float32 else [])


class Own(SFTTrainer):
    """Saves in its own way."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)


def experts(dtype: torch.dtype) -> Any:
    """A model whose experts are taken apart to be saved."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {**tiny.make_model().config.to_dict(), "num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**{k: v for k, v in sizes.items() if k != "model_type"})).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["experts", "own"])
def test_a_checkpoint_that_only_transformers_can_write_is_gone_on_from(
    how: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    def trainer(folder: Path) -> SFTTrainer:
        model = experts(dtype) if how == "experts" else tiny.make_model(dtype=dtype)
        kind = Own if how == "own" else SFTTrainer
        return tiny.trainer(folder, model=model, kind=kind, max_steps=5, save_strategy="steps", save_steps=3)

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-5")
    assert loaded.dtype == dtype
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
