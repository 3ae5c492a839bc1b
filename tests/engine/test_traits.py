"""Traits say what a model is, whatever its configuration calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sartor.engine.traits import base_model, decoder, evaluating, is_adapter, output_head, read_traits
from sartor.errors import ModelError
from tests.engine.architectures import VOCABULARY, WINDOW, make, with_lora


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"sliding_window": None, "logit_scale": 1.0, "logit_softcap": None, "num_experts": 0}),
        ("mistral", {"sliding_window": WINDOW}),
        ("qwen2", {"sliding_window": None}),
        ("qwen2, window", {"sliding_window": WINDOW}),
        ("gemma2", {"logit_softcap": 3.0, "attention": "eager", "honoured_by_own_attention": False}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logit_scale": 0.25}),
        ("gpt2", {"num_layers": 2, "hidden_size": 32, "num_attention_features": 32}),
        ("qwen3_moe", {"num_experts": 4, "experts_per_token": 2}),
        ("mixtral", {"num_experts": 4, "experts_per_token": 2}),
        ("gpt_oss", {"num_experts": 4, "experts_per_token": 2, "sliding_window": WINDOW}),
        ("bloom", {"accepts_positions": False}),
        ("falcon", {"accepts_positions": True}),
        ("mamba2", {"accepts_positions": False, "sliding_window": None}),
        ("lfm2", {"has_drawn_mask": False}),
    ],
)
def test_traits_of_known_architectures(name: str, expected: dict[str, Any]) -> None:
    traits = read_traits(make(name))

    assert {key: getattr(traits, key) for key in expected} == expected
    assert traits.vocabulary_size == VOCABULARY
    assert not traits.is_adapter


def test_an_adapter_has_the_traits_of_what_it_wraps() -> None:
    model = make("llama")
    plain = read_traits(model)
    wrapped = with_lora(model, "llama")

    assert is_adapter(wrapped)
    assert read_traits(wrapped).is_adapter
    assert base_model(wrapped) is model
    assert decoder(wrapped) is model.model
    assert output_head(wrapped) is model.lm_head
    assert read_traits(wrapped).honoured_by_own_attention == plain.honoured_by_own_attention


def test_a_head_that_an_adapter_saves_is_its_trained_copy_while_it_is_active() -> None:
    wrapped = with_lora(make("llama"), "llama, head saved")
    head = output_head(wrapped)

    assert type(head) is torch.nn.Linear
    assert head.weight.requires_grad
    with wrapped.disable_adapter():
        assert output_head(wrapped) is not head


def test_weights_of_layers_are_counted_without_embeddings_and_head() -> None:
    model = make("llama")
    counted = sum(p.numel() for p in model.model.layers.parameters() if p.dim() > 1)

    assert read_traits(model).num_non_embedding_parameters == counted


def test_prompt_learning_is_refused_by_name() -> None:
    import peft

    model = peft.get_peft_model(make("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))

    with pytest.raises(ModelError, match="prompt learning"):
        read_traits(model)


def test_a_model_without_a_head_is_refused() -> None:
    model = make("llama")

    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        read_traits(model.model)


def test_evaluating_restores_each_modules_mode_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    model[0].eval()

    context = evaluating(model)
    context.__enter__()
    assert not any(module.training for module in model.modules())
    context.__exit__(ValueError, ValueError(), None)

    assert [module.training for module in model.modules()] == [True, False, True]
