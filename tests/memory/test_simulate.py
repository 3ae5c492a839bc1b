"""Foreseen peaks against what torch's allocator counts in real steps, and the arithmetic that makes them quick."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from benchmarks import memory_models
from benchmarks.memory import PUBLISHED_WORK, Cell, compare, lora, plan_of, recomputation, training
from benchmarks.memory_measure import AllocatorPeak, held_bytes
from transformers import AutoModelForCausalLM

from sartor.engine.precision import Masters, autocast
from sartor.errors import ConfigurationError
from sartor.memory import extrapolate, simulated_step
from sartor.memory.prediction import Asked, Component, Prediction, Stretch
from sartor.memory.simulate import Training, Work, meta_model_of, simulate, simulate_model
from sartor.optim import registry
from sartor.records import EngineSettings, Plan

WORK = Work(document_lengths=(100, 60, 40), num_targets=150)
ONE = Work(document_lengths=(200,), num_targets=150)
TOLERANCE_PERCENT = 1.0
"""Measured: under 0.2 here; without one kind of saved activation (silu's results) 4 and more."""


@pytest.mark.parametrize(
    "cell",
    [
        Cell("llama, tied", "float32", False, True, "adamw_torch_fused"),
        Cell("llama, tied", "float32", False, False, "adamw_torch_fused"),
        Cell("llama, tied", "bfloat16", False, False, "adamw_torch_fused"),
        Cell("llama, tied", "bfloat16", False, True, "adamw_torch_fused"),  # all targets are first choices
        Cell("llama, tied", "float32", "cheap", True, "adamw_torch_fused"),
        Cell("gpt2", "bfloat16", "cheap", True, "adamw_torch_fused"),
        Cell("qwen3", "float32", True, True, "adamw_torch_fused"),
        Cell("gpt2", "float32", True, False, "adamw_torch, foreach"),
        Cell("llama, tied", "float32", False, False, "rmsprop"),
        Cell("llama, tied", "bfloat16", True, False, "adagrad, fused"),  # has states from the beginning
        Cell("gemma3", "float32", False, True, "adamw_torch_fused"),
        Cell("qwen3_moe", "float32", False, False, "adafactor"),
        Cell("lfm2", "float32", False, False, "sgd"),
        Cell("llama, tied", "float16", False, False, "adamw_torch_fused"),  # with a scaler of the loss
    ],
    ids=lambda cell: cell.name,
)
def test_the_peak_is_what_the_allocator_counts(cell: Cell) -> None:
    row = compare(cell, work=WORK)
    assert abs(row["error_percent"]) < TOLERANCE_PERCENT, row


def _quick_and_full(
    config: Any, plan: Plan, training: Training, monkeypatch: pytest.MonkeyPatch, work: Work = ONE
) -> tuple[Prediction, Prediction]:
    monkeypatch.setattr(extrapolate, "are_less_work", lambda chosen, kinds: True)
    quick = simulate(config, plan, work, training)
    monkeypatch.setattr(extrapolate, "are_less_work", lambda chosen, kinds: False)
    return quick, simulate(config, plan, work, training)


@pytest.mark.parametrize(
    ("recomputation_of_layers", "training"),
    [
        ({}, Training(optimizer="adamw_torch_fused")),
        ({"gradient_checkpointing": True}, Training(optimizer="adamw_torch")),
        (recomputation("cheap"), Training(optimizer="adamw_torch_fused")),
        ({"gradient_checkpointing": True, "recomputed_layers": 5}, Training(optimizer="sgd")),
        ({"gradient_checkpointing": True, "recomputed_layers": 5, "recomputes_cheap": True}, Training(optimizer="sgd")),
    ],
    ids=["kept", "recomputed", "cheap recomputed", "5 recomputed", "5 recomputed, others cheaply"],
)
def test_extrapolating_over_layers_equals_simulating_them_all(
    recomputation_of_layers: dict[str, Any], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 9
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    plan = dataclasses.replace(plan, **recomputation_of_layers)
    work = dataclasses.replace(ONE, num_micro_batches=2 if training.optimizer == "adamw_torch" else 1)
    quick, full = _quick_and_full(config, plan, training, monkeypatch, work)
    assert "extrapolated from" in quick.notes[0]
    assert quick.timeline == full.timeline


@pytest.mark.parametrize(
    ("architecture", "types"),
    [
        ("gemma3", [*(["sliding_attention"] * 2 + ["full_attention"]) * 4, "sliding_attention", "sliding_attention"]),
        ("lfm2", [*["conv", "conv", "full_attention"] * 4, "conv", "conv"]),
    ],
)
@pytest.mark.parametrize("recomputed_layers", [None, 6])
def test_layers_of_several_kinds_are_extrapolated_to_the_byte(
    recomputed_layers: int | None, architecture: str, types: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = memory_models.small(architecture)
    config.num_hidden_layers = len(types)
    config.layer_types = types
    plan = plan_of(config, tokens=200, compute="float32", recomputes=True)
    plan = dataclasses.replace(plan, recomputed_layers=recomputed_layers)
    quick, full = _quick_and_full(config, plan, Training(optimizer="sgd"), monkeypatch)
    assert "extrapolated from" in quick.notes[0]
    assert quick.timeline == full.timeline


def test_adapters_in_half_precision_are_extrapolated_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts that autocast keeps die with the forward pass; updates go in pieces, which are not affine in layers."""
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 8
    training = Training(arrival_dtype="bfloat16", lora=lora("llama"))
    plan = plan_of(config, tokens=200, compute="bfloat16", recomputes=True)
    quick, full = _quick_and_full(config, plan, training, monkeypatch)
    assert "extrapolated from" in quick.notes[0]
    assert quick.timeline == full.timeline


def test_settings_that_differ_in_recomputed_layers_share_what_was_simulated() -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 30
    plan = plan_of(config, tokens=200, compute="float32", recomputes=True)
    model, known = meta_model_of(config, "float32", Training()), {}  # type: Any, dict[Any, Any]
    peaks = []
    for layers in (12, 18):
        found = simulate_model(model, dataclasses.replace(plan, recomputed_layers=layers), ONE, Training(), known)
        peaks.append(found.peak_bytes)
    assert len(known) == 5  # and the updates
    assert peaks == sorted(peaks, reverse=True)


def test_memory_that_is_not_affine_in_layers_is_simulated_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 13
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    passes = simulated_step.passes

    def curved(*given: Any, only_last: bool) -> list[Stretch]:
        return [
            Stretch(one.phase, one.layer, {**one.components, Component.TEMPORARIES: len(given[-1]) ** 2})
            for one in passes(*given, only_last=only_last)
        ]

    monkeypatch.setattr(simulated_step, "passes", curved)
    assert "not affine" in simulate(config, plan, ONE).notes[0]


SHARING: tuple[dict[str, Any], ...] = (
    {},
    {"loss_chunk_rows": 64},
    {"optimizer_implementation": "for-loop"},
    {"gradient_checkpointing": True, "recomputes_cheap": True, "recomputed_layers": 0},
    {"optimizer_states": "host", "loss_chunk_rows": 32},
)


@pytest.mark.parametrize(
    ("device", "numbers", "num_updates"),
    [
        ("cpu", (0, 1, 3), 1),
        ("cuda", (0, 4), 2),
        pytest.param("cpu", range(5), 3, marks=pytest.mark.slow),
        pytest.param("cuda", range(5), 3, marks=pytest.mark.slow),
    ],
)
def test_what_settings_share_is_what_each_needs_by_itself(
    device: str, numbers: Sequence[int], num_updates: int
) -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 13
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    plan = dataclasses.replace(plan, device=device, optimizer_implementation="fused")
    model, known = meta_model_of(config, "float32", Training()), {}  # type: Any, dict[Any, Any]
    for number in numbers:
        setting = dataclasses.replace(plan, **SHARING[number])
        work = Work((120, 80 + number), 150, 1 + number % 2)
        shared = simulate_model(model, setting, work, Training(), known)
        alone = simulate_model(model, setting, work, Training())
        assert shared == alone
        rough = simulate_model(model, setting, work, Training(), known, is_rough=True)
        assert (rough.peak_bytes, rough.peak.label) == (alone.peak_bytes, alone.peak.label)
    assert sum(key[0] == "updates" for key in known) == num_updates


def test_kinds_that_are_too_rare_are_simulated_in_full() -> None:
    config = memory_models.small("gemma3")
    config.num_hidden_layers = 8
    config.layer_types = ["sliding_attention"] * 7 + ["full_attention"]
    foreseen = simulate(config, plan_of(config, tokens=200, compute="float32", recomputes=False), WORK)
    assert "in full: 8 layers" in foreseen.notes[0]


def test_components_are_what_they_are_called() -> None:
    config = memory_models.small("llama, tied")
    num_bytes = 4 * (8_192 * 256 + 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 704 + 2 * 256) + 256)
    foreseen = simulate(config, plan_of(config, tokens=200, compute="float32", recomputes=False), WORK)
    update = foreseen.timeline[-1]
    assert update.phase == "update"
    buffers_bytes = 2 * 4 * 32  # rotary frequencies, and as they were
    assert num_bytes <= update.components[Component.PARAMETERS] <= num_bytes + buffers_bytes
    assert update.components[Component.GRADIENTS] == num_bytes
    assert 2 * num_bytes <= update.components[Component.OPTIMIZER] <= 2 * num_bytes + 4 * 50  # and counts of steps
    assert update.components[Component.ACTIVATIONS] == 0
    assert foreseen.peak_bytes == sum(foreseen.components.values())


@pytest.mark.parametrize(
    ("optim", "optim_args", "states"),
    [("sgd", None, 0), ("sgd", "momentum=0.9", 1), ("rmsprop", "centered=true, momentum=0.5", 3)],
)
def test_what_optim_args_says_of_states_is_counted(optim: str, optim_args: str | None, states: int) -> None:
    config = memory_models.small("llama, tied")
    options = registry.options_of(optim, optim_args)
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    update = simulate(config, plan, WORK, Training(optimizer=optim, optimizer_options=options)).timeline[-1]
    counts_bytes = 4 * 50  # of steps
    expected = states * update.components[Component.GRADIENTS]
    assert expected <= update.components[Component.OPTIMIZER] <= expected + counts_bytes
    assert registry.state_bytes(optim, options) == 4 * states


def test_recomputation_saves_activations_and_a_second_micro_batch_needs_gradients() -> None:
    config = memory_models.small("llama, tied")
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    kept = simulate(config, plan, WORK)
    recomputed = simulate(config, dataclasses.replace(plan, gradient_checkpointing=True), WORK)
    cheap = simulate(config, dataclasses.replace(plan, **recomputation("cheap")), WORK)
    whole, some, none = (
        max(s.components[Component.ACTIVATIONS] for s in found.timeline) for found in (recomputed, cheap, kept)
    )
    assert whole < 0.6 * none
    assert 1.1 * whole < some < 0.8 * none
    two = simulate(config, plan, dataclasses.replace(WORK, num_micro_batches=5))
    assert len(two.timeline) > 1.5 * len(kept.timeline)
    assert two.peak_bytes > kept.peak_bytes


def test_what_is_kept_of_each_layer_is_foreseen_where_the_last_product_is_dropped() -> None:
    row = compare(Cell("llama, tied", "float32", "cheap", False, "adamw_torch_fused"))
    assert "backward" in row["peak_at"]
    assert abs(row["error_percent"]) < 0.1, row


def test_recomputing_in_half_precision_no_copies_of_all_weights_are_kept_through_the_forward_pass() -> None:
    config = memory_models.small("llama, tied")
    plan = plan_of(config, tokens=200, compute="bfloat16", recomputes=True)
    foreseen = simulate(config, plan, WORK, Training(arrival_dtype="bfloat16"))
    weights_bytes = 2 * 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 704)
    last = next(stretch for stretch in foreseen.timeline if (stretch.phase, stretch.layer) == ("forward", 3))
    assert last.components[Component.TEMPORARIES] + last.components[Component.ACTIVATIONS] < 0.7 * weights_bytes


def test_saving_is_a_stretch_of_its_own() -> None:
    config = memory_models.small("llama, tied")
    plan = plan_of(config, tokens=200, compute="bfloat16", recomputes=False)
    foreseen = simulate(config, plan, WORK, Training(arrival_dtype="bfloat16", saves=True))
    saving = foreseen.timeline[-1]
    assert saving.phase == "saving"
    parameters_bytes = 2 * config.vocab_size * config.hidden_size
    assert saving.components[Component.TEMPORARIES] > parameters_bytes


@pytest.mark.parametrize(
    ("architecture", "compute"), [("llama, tied", "float32"), ("qwen3", "bfloat16"), ("mamba2", "float32")]
)
def test_answers_need_what_the_allocator_counts_while_the_model_generates(architecture: str, compute: str) -> None:
    config = memory_models.small(architecture)
    asked = Asked(num_prompts=3, prompt_tokens=40, new_tokens=20)
    plan = plan_of(config, tokens=200, compute=compute, recomputes=False)
    foreseen = [s for s in simulate(config, plan, ONE, Training(asked=asked)).timeline if s.phase == "answers"]
    assert len(foreseen) == 2
    own = (Component.PARAMETERS, Component.TEMPORARIES, Component.SCRATCH)  # the buffer of logits is the engine's
    found = max(sum(stretch.components[part] for part in own if part in stretch.components) for stretch in foreseen)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(3, config.vocab_size, (3, 40))
    options = {"max_new_tokens": 20, "eos_token_id": None, "do_sample": False, "use_cache": True}
    with AllocatorPeak() as counted, torch.no_grad(), autocast(torch.device("cpu"), getattr(torch, compute)):
        model.generate(ids, **options)
    assert found == pytest.approx(held_bytes(model) + counted.num_bytes, rel=0.02)


@pytest.mark.parametrize("is_lora", [False, True])
def test_saving_needs_what_the_allocator_counts_while_weights_are_rounded(is_lora: bool) -> None:
    config = memory_models.small("llama, tied")
    adapter = lora("llama") if is_lora else None
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    training = Training(arrival_dtype="bfloat16", lora=adapter, saves=True)
    saving = simulate(config, plan, ONE, training).timeline[-1]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if adapter is not None:
        model = peft.get_peft_model(model, adapter)
    masters = Masters(model)
    masters.widen(torch.float32)
    with AllocatorPeak() as counted, masters.rounded():
        pass
    assert saving.phase == "saving"
    assert saving.components[Component.TEMPORARIES] == pytest.approx(counted.num_bytes, rel=1e-3, abs=8_192)


def test_cuda_has_rules_of_its_own() -> None:
    config = memory_models.small("gpt2")
    on_cpu = plan_of(config, tokens=200, compute="bfloat16", recomputes=False)
    cpu, cuda = (simulate(config, dataclasses.replace(on_cpu, device=device), WORK) for device in ("cpu", "cuda"))
    logits = [max(s.components[Component.LOGITS] for s in found.timeline) for found in (cpu, cuda)]
    assert logits[1] > 1.5 * logits[0]  # whole chunks at a time
    activations = [max(s.components[Component.ACTIVATIONS] for s in found.timeline) for found in (cpu, cuda)]
    assert activations[1] > 1.02 * activations[0]  # norms in float32
    assert any("unmeasured" in note for note in cuda.notes)
    assert cuda.margin_bytes > cpu.margin_bytes


def test_four_bit_weights_take_half_a_byte_and_their_scales() -> None:
    import peft

    config = memory_models.small("llama")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    plan = plan_of(config, tokens=200, compute="bfloat16", recomputes=False)
    plain = simulate(config, plan, WORK, Training(arrival_dtype="bfloat16", lora=lora))
    four = simulate(config, plan, WORK, Training(arrival_dtype="bfloat16", lora=lora, four_bit=True))
    num_values = 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 704)
    saved = plain.components[Component.PARAMETERS] - four.components[Component.PARAMETERS]
    assert saved == pytest.approx(num_values * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)), rel=1e-3)
    assert any("unmeasured" in note for note in four.notes)


def test_noise_and_smoothing_are_simulated_too() -> None:
    config = memory_models.small("llama, tied")
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    settings = EngineSettings(neftune_noise_alpha=5.0, label_smoothing=0.1)
    assert (
        simulate(config, plan, WORK, Training(settings=settings)).peak_bytes >= simulate(config, plan, WORK).peak_bytes
    )


def test_nothing_real_is_allocated_for_a_model_of_eight_billion() -> None:
    config = memory_models.published("Llama-3.1-8B")
    plan = plan_of(config, tokens=1_024, compute="bfloat16", recomputes=True)
    foreseen = simulate(config, plan, Work((1_024,), 1_000), Training(arrival_dtype="bfloat16"))
    assert foreseen.peak_bytes > 8e9 * 16
    assert torch.get_default_dtype() == torch.float32


def test_what_cannot_be_simulated_is_said() -> None:
    config = memory_models.small("llama")
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    with pytest.raises(ConfigurationError, match="no more targets than tokens"):
        simulate(config, plan, Work((5,), 6))
    with pytest.raises(ConfigurationError, match="optim='madgrad'"):
        simulate(config, plan, WORK, Training(optimizer="madgrad"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux")
@pytest.mark.parametrize("architecture", list(memory_models.SMALL))
def test_every_architecture_is_foreseen(architecture: str) -> None:
    for precision, recomputes, is_lora in (("float32", False, False), ("bfloat16", True, True)):
        row = compare(Cell(architecture, precision, recomputes, is_lora, "adamw_torch_fused"))
        assert abs(row["error_percent"]) < TOLERANCE_PERCENT, row


@pytest.mark.slow
def test_published_sizes_take_seconds() -> None:
    import time

    for name in memory_models.PUBLISHED:
        config = memory_models.published(name)
        plan = plan_of(config, tokens=8_192, compute="bfloat16", recomputes=True)
        start = time.process_time()
        simulate(config, plan, PUBLISHED_WORK, training(Cell(name, "bfloat16", True, True, "adamw_torch_fused")))
        assert time.process_time() - start < 10
