"""`torch_compile`: training goes through compiled layers, evaluation and the model afterwards do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sartor import SFTConfig
from sartor.errors import ConfigurationError
from tests.hf import tiny

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_a_run_with_compiled_layers_ends_with_the_weights_of_one_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sartor")
    plain = tiny.trainer(tmp_path / "plain", max_steps=3)
    plain.train()
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    trainer = tiny.trainer(
        tmp_path / "compiled",
        max_steps=3,
        torch_compile=True,
        torch_compile_backend="eager",
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=tiny.dataset(tiny.texts(4)),
        rehearse=True,
    )
    trainer.train()

    assert torch._dynamo.utils.counters["frames"]["ok"] > frames
    assert "layers compiled by eager" in caplog.text
    assert json.loads((tmp_path / "compiled" / "plan.json").read_text())["compile_backend"] == "eager"
    for name, parameter in plain.model.named_parameters():
        assert torch.allclose(trainer.model.get_parameter(name), parameter, atol=1e-6), name


def test_a_resumed_run_keeps_the_layers_of_its_checkpoint(tmp_path: Path) -> None:
    options = {"torch_compile": True, "torch_compile_backend": "eager", "save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tmp_path, max_steps=2, **options).train()
    trainer = tiny.trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, accept_changes=["max_steps"])
    trainer.train(resume_from_checkpoint=True)

    assert json.loads((tmp_path / "plan.json").read_text())["compile_backend"] == "eager"


def test_modes_with_cuda_graphs_and_cheap_recomputation_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="torch_compile_mode='reduce-overhead' is unknown"):
        SFTConfig(output_dir="unused", torch_compile=True, torch_compile_mode="reduce-overhead")
    with pytest.raises(ConfigurationError, match="recomputed_operations='cheap' and torch_compile=True"):
        SFTConfig(output_dir="unused", torch_compile=True, recomputed_operations="cheap")


def test_an_own_loss_and_an_unknown_backend_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        tiny.trainer(
            tmp_path, torch_compile=True, torch_compile_backend="inductr", compute_loss_func=lambda *given, **more: 0.0
        )
    assert "an own loss or data_collator" in str(error.value)
    assert "'inductr' is unknown" in str(error.value)
