"""One micro-batch forward and backward: sums, norms, recomputation, balance loss, float16, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from sartor.batching.cut import make_micro_batch
from sartor.errors import ModelError
from sartor.records import EngineSettings, Example, Layout
from tests.engine import reference
from tests.engine.architectures import make, with_lora
from tests.engine.batches import accumulate, documents, engine, gradients, micro_batches


def test_measuring_equals_the_sums_of_training_and_leaves_no_gradient() -> None:
    model = make("llama")
    run = engine(model)
    trained, _ = accumulate(run, documents(), 3)
    model.zero_grad()

    with run.running():
        parts = [run.measure(micro) for micro in micro_batches(documents(), 2)]
    measured = parts[0] + parts[1] + parts[2] + parts[3]

    assert float(measured.loss_sum) == pytest.approx(float(trained.loss_sum), rel=1e-6)
    assert float(measured.entropy_sum) == pytest.approx(float(trained.entropy_sum), rel=1e-6)
    assert float(measured.num_correct) == float(trained.num_correct)
    assert measured.num_targets == trained.num_targets
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recomputation_runs_every_layer_again() -> None:
    calls: list[nn.Module] = []

    def count(layer: nn.Module, inputs: Any) -> None:
        calls.append(layer)

    for wanted, expected in ((False, 2), (True, 4)):
        model = make("llama")
        for layer in model.model.layers:
            layer.self_attn.q_proj.register_forward_pre_hook(count)
        run = engine(model, gradient_checkpointing=wanted)
        calls.clear()  # the probe's
        accumulate(run, documents(), 99)

        assert len(calls) == expected


def test_the_first_layers_alone_can_be_recomputed() -> None:
    calls: list[int] = []
    model = make("llama")
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(lambda module, inputs, number=number: calls.append(number))
    accumulate(engine(model), documents(), 99)
    expected = gradients(model)
    model.zero_grad()
    run = engine(model, gradient_checkpointing=True, recomputed_layers=1)
    calls.clear()  # the probe's
    accumulate(run, documents(), 99)
    assert calls == [0, 1, 0]
    found = gradients(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    calls.clear()
    with run.running():
        run.replan(dataclasses.replace(run.plan, recomputed_layers=None))
        for micro in micro_batches(documents(), 99):
            run.backward(micro, batch_targets=9, batch_tokens=99)
    assert calls == [0, 1, 1, 0]
    assert not model.is_activation_checkpointing


def test_recomputation_with_an_adapter_asks_nothing_of_the_frozen_embeddings() -> None:
    model = with_lora(make("llama"), "llama")
    run = engine(model, gradient_checkpointing=True)
    needs: list[bool] = []
    model.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda module, inputs: needs.append(inputs[0].requires_grad)
    )

    accumulate(run, documents(), 99)

    assert needs
    assert not any(needs)


def test_norm_is_of_all_gradients_and_clipping_keeps_their_direction() -> None:
    model = make("llama")
    run = engine(model)
    _, before = accumulate(run, documents(), 3)
    expected = float(torch.stack([gradient.norm() for gradient in before.values()]).norm())

    assert run.gradient_norm(0.0) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(before[name], gradient) for name, gradient in gradients(model).items())
    assert run.gradient_norm(expected / 4) == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name] / 4, rtol=1e-4, atol=1e-9)


def test_norm_without_gradients_is_zero() -> None:
    assert engine(make("llama")).gradient_norm(1.0) == 0.0


def test_a_loss_scale_multiplies_gradients_and_nothing_else() -> None:
    model = make("llama")
    run = engine(model)
    _, plain = accumulate(run, documents(), 3)
    norm = run.gradient_norm(0.0)
    accumulate(run, documents(), 3, loss_scale=1024.0)

    assert run.gradient_norm(0.0) / 1024 == pytest.approx(norm, rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient / 1024, plain[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_near_float32(name: str, dtype: str) -> None:
    """Measured: 0.2 % in float16, 1.4 % in bfloat16, of the norm of all gradients together."""
    model = make(name)
    _, plain = accumulate(engine(model), documents(), 3)

    run = engine(model, compute_dtype=dtype)
    accumulate(run, documents(), 3, loss_scale=1024.0)
    found = {key: gradient / 1024 for key, gradient in gradients(model).items()}

    whole = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    difference = torch.stack([(found[key] - plain[key]).norm() for key in plain]).norm() / whole
    assert 1e-6 < float(difference) < (5e-3 if dtype == "float16" else 3e-2)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_an_overflow_shows_in_the_norm() -> None:
    model = make("llama")
    run = engine(model, compute_dtype="float16")
    accumulate(run, documents(), 3, loss_scale=1e12)

    assert not torch.isfinite(torch.tensor(run.gradient_norm(1.0)))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_balance_loss_equals_the_models_own(name: str, checkpointing: bool) -> None:
    """The model's own forward: a padded batch, labels, its own mean, its own coefficient."""
    model = make(name)
    examples = [documents()[index] for index in (0, 1, 3)]
    double = reference.in_double(model)
    double.router_aux_loss_coef = 0.5
    length = max(len(example.input_ids) for example in examples)
    ids = torch.tensor([[*example.input_ids, *[0] * (length - len(example.input_ids))] for example in examples])
    labels = torch.tensor([[*example.labels, *[-100] * (length - len(example.labels))] for example in examples])
    is_real = torch.tensor([[1] * len(e.input_ids) + [0] * (length - len(e.input_ids)) for e in examples])
    double(
        input_ids=ids, attention_mask=is_real, labels=labels, output_router_logits=True, use_cache=False
    ).loss.backward()
    truth = {key: parameter.grad for key, parameter in double.named_parameters()}

    run = engine(model, gradient_checkpointing=checkpointing)
    without = reference.worst_difference(accumulate(run, examples, 3)[1], truth, 1e-4)[0]
    run.balance_coefficient = 0.5
    _, found = accumulate(run, examples, 3)

    assert without > 1e-2
    assert reference.worst_difference(found, truth, 1e-4)[0] < 1e-5


def test_balance_loss_counts_documents_without_targets() -> None:
    model = make("mixtral")
    run = engine(model)
    run.balance_coefficient = 0.5
    micro = make_micro_batch([documents()[2]], [0])
    assert micro.num_targets == 0

    with run.running():
        run.backward(micro, batch_targets=5, batch_tokens=10)

    router = model.model.layers[0].mlp.gate.weight
    assert router.grad is not None
    assert float(router.grad.norm()) > 0


def test_balance_loss_of_a_model_without_experts_is_an_error() -> None:
    run = engine(make("llama"))
    run.balance_coefficient = 0.1

    with run.running(), pytest.raises(ModelError, match="router_aux_loss_coef"):
        run.backward(micro_batches(documents(), 99)[0], batch_targets=5, batch_tokens=10)


def test_only_a_head_can_be_trained() -> None:
    model = make("llama")
    truth = reference.gradients(model, documents())[1]["lm_head.weight"]
    model.model.requires_grad_(False)

    _, found = accumulate(engine(model), documents(), 3)

    assert found.keys() == {"lm_head.weight"}
    assert float((found["lm_head.weight"].double() - truth).norm() / truth.norm()) < 1e-5


class Louder(nn.Linear):
    """A head that no trait knows of."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "bloom", "mamba2", "llama, head with bias"])
def test_head_check_passes_what_the_traits_know(name: str) -> None:
    model = make(name)

    engine(model).check_head()

    assert model.training


def test_head_check_draws_no_random_numbers() -> None:
    run = engine(make("llama"))
    state = torch.get_rng_state()
    run.check_head()

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("trait", ["final_logit_softcapping", "logit_scale"])
def test_head_check_refuses_logits_that_it_cannot_explain(trait: str) -> None:
    model: Any = make({"final_logit_softcapping": "gemma2", "logit_scale": "cohere"}[trait])
    run = engine(model)
    if trait == "logit_scale":
        model.logit_scale *= 2  # the module, not the configuration
    else:
        model.config.final_logit_softcapping = None

    with pytest.raises(ModelError, match="does more between decoder and logits"):
        run.check_head()


def test_rotary_frequencies_that_depend_on_neighbours_are_refused_in_time() -> None:
    import transformers

    rope = {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0,
        "original_max_position_embeddings": 8,
    }  # fmt: skip
    config = transformers.Phi3Config(original_max_position_embeddings=8,
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        num_key_value_heads=2, max_position_embeddings=64, rope_parameters=rope, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    run = engine(transformers.AutoModelForCausalLM.from_config(config))

    run.check_lengths(8)
    with pytest.raises(ModelError, match="max_length=8 or less"):
        run.check_lengths(9)
    engine(make("llama")).check_lengths(10**6)
    with run.running(), pytest.raises(ModelError, match="micro_batch_tokens=1"):
        run.measure(micro_batches(documents(), 99)[0])
    accumulate(run, documents(), 1)


def test_recomputation_that_the_architecture_cannot_do_is_an_error() -> None:
    model = make("llama")
    model.supports_gradient_checkpointing = False

    with (
        pytest.raises(ModelError, match="gradient_checkpointing=False"),
        engine(model, gradient_checkpointing=True).running(),
    ):
        pass


def test_a_callers_autocast_does_not_reach_a_float32_run() -> None:
    model = make("llama")
    run = engine(model)
    _, plain = accumulate(run, documents(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = accumulate(run, documents(), 3)

    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_dft_and_smoothing_reach_the_loss() -> None:
    model = make("llama")
    values = {
        float(accumulate(engine(model, settings), documents(), 3)[0].loss_sum)
        for settings in (EngineSettings(), EngineSettings(loss_type="dft"), EngineSettings(label_smoothing=0.1))
    }

    assert len(values) == 3


def test_the_cut_changes_nothing_in_a_padded_layout_either() -> None:
    model = make("gpt2")
    run = engine(model, layout=Layout.PADDED)
    _, one = accumulate(run, documents(), 1)
    _, all_ = accumulate(run, [*documents(), Example([5], [5])], 99)

    assert reference.worst_difference(one, {key: value.double() for key, value in all_.items()}, 1e-4)[0] < 1e-5
