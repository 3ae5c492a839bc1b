"""What is not trained: a resumed run has the frozen weights of the run that it goes on with, or says which it lacks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from sartor import SFTTrainer
from sartor.errors import ConfigurationError
from sartor.run.fingerprints import tensor_digest
from tests.hf import tiny
from tests.whole.test_resume import StopsAt, heard, same_run

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "max_steps": 6}
ADDED = 3


def with_added_rows(folder: Path, *, seed: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model from disk whose embedding and head are given three rows more, at random, as a script does each time."""
    if not folder.exists():
        tiny.make_model(attention_dropout=0.2, dtype=dtype).save_pretrained(folder)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(tiny.VOCABULARY) + ADDED, mean_resizing=False)
    return model


def all_frozen_but_layers(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    model = with_added_rows(folder, seed=seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers" in name)
    return model, {}


def adapter(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """peft saves an embedding that was resized with the adapter."""
    peft_config = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return with_added_rows(folder, seed=seed), {"peft_config": peft_config}


def trained_tokens(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """One added row is trained, the others are not."""
    peft_config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=[len(tiny.VOCABULARY)]
    )
    return with_added_rows(folder, seed=seed), {"peft_config": peft_config}


def trained_head(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """A copy of the head is trained as a whole; the one that it was copied from stays, and the embedding."""
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    return with_added_rows(folder, seed=seed), {"peft_config": peft_config}


def half_an_adapter(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """Of a user who trains `lora_B` alone (LoRA-FA): `lora_A` is at random, and frozen."""
    from peft import get_peft_model

    model = with_added_rows(folder, seed=1)
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    return model, {}


Make = Callable[[Path, int], tuple[Any, dict[str, Any]]]


def run(make: Make, folder: Path, seed: int, *, stops: int | None = None, **options: Any) -> SFTTrainer:
    model, more = make(folder.parent / "base", seed)
    callbacks = [] if stops is None else [StopsAt(stops)]
    return tiny.trainer(folder, model=model, callbacks=callbacks, **{**OPTIONS, **more, **options})


@pytest.mark.parametrize("make", [all_frozen_but_layers, adapter, trained_tokens, trained_head, half_an_adapter])
def test_what_is_frozen_and_was_added_at_random_comes_back_where_the_checkpoint_holds_it(
    make: Make, tmp_path: Path
) -> None:
    whole = run(make, tmp_path / "whole", 1)
    whole.train()
    with pytest.raises(ZeroDivisionError):
        run(make, tmp_path / "stopped", 1, stops=5).train()
    resumed = run(make, tmp_path / "stopped", 2)
    told = heard(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert any("they are put back" in line for line in told)
    same_run(whole, resumed)


def from_memory(folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """Of a model that was never on a disk peft cannot tell that its embedding was resized."""
    model = tiny.make_model(attention_dropout=0.2)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(tiny.VOCABULARY) + ADDED, mean_resizing=False)
    return model, {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}


def test_what_is_frozen_and_nobody_saved_is_named_unless_it_is_the_same(tmp_path: Path) -> None:
    """Three rows of 90 that differ are enough; what is refused is as it was."""
    whole = run(from_memory, tmp_path / "whole", 1)
    whole.train()
    with pytest.raises(ZeroDivisionError):
        run(from_memory, tmp_path / "stopped", 1, stops=5).train()
    other = run(from_memory, tmp_path / "stopped", 2)
    with (
        tiny.untouched(other.model),
        pytest.raises(ConfigurationError, match=r"model: the base model.*embed_tokens.*accept_changes=\['model'\]"),
    ):
        other.train(resume_from_checkpoint=True)
    resumed = run(from_memory, tmp_path / "stopped", 1)
    resumed.train(resume_from_checkpoint=True)
    same_run(whole, resumed)


def test_frozen_weights_that_were_accepted_stay(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(all_frozen_but_layers, tmp_path / "run", 1, stops=3).train()
    resumed = run(all_frozen_but_layers, tmp_path / "run", 2, accept_changes=["model"])
    before = copy.deepcopy(resumed.model.get_input_embeddings().weight)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.model.get_input_embeddings().weight, before)


def test_a_tensors_digest_is_of_every_value_and_not_of_its_dtype() -> None:
    tensor = torch.randn(1100, 1000).to(torch.bfloat16)
    digest = tensor_digest(tensor)
    assert tensor_digest(tensor.float()) == digest
    assert tensor_digest(tensor.reshape(1000, 1100)) != digest
    for place in (0, 17, tensor.numel() - 1):
        other = tensor.clone()
        other.view(-1)[place] += 1
        assert tensor_digest(other) != digest
    assert tensor_digest(tensor.roll(1)) != digest
    assert len({tensor_digest(torch.zeros(shape)) for shape in ((0,), (1,), (), (0, 2))}) == 4
    assert tensor_digest(torch.tensor([1, 2], dtype=torch.uint8)) != tensor_digest(
        torch.tensor([2, 1], dtype=torch.uint8)
    )
