"""LoRA: through `peft_config`, as a `PeftModel`, or as the folder of an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from sartor import SFTTrainer
from sartor.errors import ConfigurationError, ModelError
from tests.hf import tiny

STEPS: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny.make_model().save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def test_only_the_adapter_moves_and_only_it_is_saved(base_folder: Path, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        str(base_folder), tiny.config(tmp_path / "run", **STEPS), train_dataset=tiny.dataset(), peft_config=lora()
    )
    before = tiny.weights(trainer.model)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    assert not list((tmp_path / "run").rglob("model.safetensors"))

    loaded = PeftModel.from_pretrained(tiny.make_model(), tmp_path / "run" / "checkpoint-2")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(loaded(ids).logits, trainer.model.eval()(ids).logits, atol=1e-6)


def test_a_peft_model_is_trained_as_it_is(tmp_path: Path) -> None:
    model = get_peft_model(tiny.make_model(), lora())
    trainer = tiny.trainer(tmp_path, model=model, max_steps=2)
    assert trainer.model is model
    trainer.train()
    moved = [name for name, p in model.named_parameters() if "lora_B" in name and bool(p.any())]
    assert len(moved) == 2
    with pytest.raises(ConfigurationError, match="leave peft_config out"):
        tiny.trainer(tmp_path, model=model, peft_config=lora())


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_folder_of_an_adapter_is_trained_further(with_tokenizer: bool, base_folder: Path, tmp_path: Path) -> None:
    first = SFTTrainer(
        str(base_folder), tiny.config(tmp_path / "run", **STEPS), train_dataset=tiny.dataset(), peft_config=lora()
    )
    first.train()
    folder = tmp_path / "run" / "checkpoint-2"
    if not with_tokenizer:
        for path in folder.glob("*token*"):
            path.unlink()
    second = SFTTrainer(str(folder), tiny.config(tmp_path / "more", max_steps=1), train_dataset=tiny.dataset())
    assert isinstance(second.model, PeftModel)
    for name, parameter in first.model.named_parameters():
        assert torch.equal(second.model.get_parameter(name), parameter), name
    before = tiny.weights(second.model)
    second.train()
    assert any(not torch.equal(p, before[n]) for n, p in second.model.named_parameters() if "lora_" in n)


def test_the_adapter_of_a_base_that_is_gone_is_an_error_before_loading(base_folder: Path, tmp_path: Path) -> None:
    import shutil

    trainer = SFTTrainer(
        str(base_folder), tiny.config(tmp_path / "run", **STEPS), train_dataset=tiny.dataset(), peft_config=lora()
    )
    trainer.train()
    shutil.rmtree(base_folder)
    with pytest.raises(ModelError, match=r"no model can be loaded from .*base"):
        SFTTrainer(str(tmp_path / "run" / "checkpoint-2"), tiny.config(tmp_path / "more"), train_dataset=tiny.dataset())


def test_a_bf16_base_stays_bf16_and_the_adapter_trains_in_float32(tmp_path: Path) -> None:
    model = tiny.make_model(dtype=torch.bfloat16)
    before = tiny.weights(model)
    trainer = tiny.trainer(tmp_path, model=model, peft_config=lora(), **STEPS, learning_rate=1e-3)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    for name, parameter in model.named_parameters():
        plain = name.replace("base_layer.", "")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_starts_and_trains_as_with_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed; it is the reference here")
    ours = tiny.trainer(tmp_path / "ours", peft_config=lora(), max_steps=4)
    theirs = trl.SFTTrainer(
        tiny.make_model(),
        trl.SFTConfig(
            str(tmp_path / "theirs"),
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            max_steps=4,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=tiny.dataset(),
        processing_class=tiny.make_tokenizer(),
        peft_config=lora(),
    )
    for name, parameter in theirs.model.named_parameters():
        assert torch.equal(ours.model.get_parameter(name), parameter), name
    ours.train()
    theirs.train()
    # measured: 1e-6
    assert tiny.losses(ours.state.log_history) == pytest.approx(tiny.losses(theirs.state.log_history), abs=5e-6)


def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path) -> None:
    values = iter([0.9, 0.1])
    trainer = tiny.trainer(
        tmp_path,
        peft_config=lora(),
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="luck",
        compute_metrics=lambda given: {"luck": next(values)},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    best = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    for name, tensor in best.items():
        found = trainer.model.get_parameter(name.replace(".weight", ".default.weight"))
        assert torch.equal(found, tensor), name


def test_prompt_learning_is_refused_by_name(tmp_path: Path) -> None:
    model = get_peft_model(tiny.make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="prompt learning"):
        tiny.trainer(tmp_path, model=model, max_steps=1).train()
