"""The probe finds the layout that isolates documents, and leaves no trace on the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sartor.batching.cut import make_micro_batch
from sartor.engine import attention, layout
from sartor.engine.layout import LayoutChoice, candidates, choose_layout, model_inputs, target_hidden
from sartor.engine.step import Engine
from sartor.engine.traits import read_traits
from sartor.errors import ModelError
from sartor.records import EngineSettings, Example, Layout
from tests.engine.architectures import ARCHITECTURES, make, with_lora
from tests.engine.batches import documents, engine, micro_batches, plan

# Says what a change of transformers or of the probe changes.
CHOSEN = {
    "FLAT_DOCUMENTS": (
        "llama", "llama, tied", "llama, head with bias", "llama, adapter on head", "llama, head saved", "qwen2",
        "qwen2, window", "qwen3", "qwen3_moe", "mixtral", "mistral", "gemma3", "gpt2", "phi3", "olmo2", "olmo3",
        "cohere", "granite", "smollm3",
    ),
    "FLAT_POSITIONS": ("llama4",),
    "FLAT_MASK": ("falcon",),
    "PADDED": ("llama, eager", "gemma2", "gpt_oss", "bloom", "mamba2", "lfm2"),
}  # fmt: skip


def test_every_architecture_has_the_layout_that_is_written_down() -> None:
    found: dict[str, list[str]] = {kind: [] for kind in CHOSEN}
    for name in ARCHITECTURES:
        model = make(name)
        found[choose_layout(model, read_traits(model)).layout.name].append(name)

    assert {kind: set(names) for kind, names in found.items()} == {kind: set(names) for kind, names in CHOSEN.items()}


def problem(model: Any, kind: Layout) -> str | None:
    """What the probe says about one layout."""
    traits = read_traits(model)
    probed, changed = layout._probe_documents(traits, torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        truth = [layout._hidden(model, traits, layout._micro([ids]), Layout.PADDED, plain=True) for ids in probed]
        return layout.layout_problem(model, traits, kind, probed, changed, truth)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("gpt_oss", Layout.FLAT_POSITIONS, "documents leak into each other"),
        ("falcon", Layout.FLAT_POSITIONS, "documents leak into each other"),
        ("bloom", Layout.FLAT_POSITIONS, "documents leak into each other"),
        ("mamba2", Layout.FLAT_POSITIONS, "documents leak into each other"),
        ("lfm2", Layout.FLAT_POSITIONS, "documents leak into each other"),
        ("gemma2", Layout.FLAT_DOCUMENTS, "its result differs from one document at a time"),
        ("llama", Layout.FLAT_POSITIONS, None),
        ("mistral", Layout.FLAT_MASK, None),
    ],
)
def test_probe_tells_leaks_and_wrong_results_from_right_ones(name: str, kind: Layout, expected: str | None) -> None:
    assert problem(make(name), kind) == expected


@pytest.fixture
def leaking_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **kwargs: Any) -> Any:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    monkeypatch.setattr(attention, "documents_attention", leak)


@pytest.mark.usefixtures("leaking_attention")
def test_probe_rejects_an_own_attention_that_leaks() -> None:
    choice = choose_layout(model := make("llama"), read_traits(model))

    assert choice.layout is Layout.FLAT_POSITIONS
    assert "not flat, attention per document (documents leak into each other)" in choice.reason


def test_probe_rejects_an_own_attention_without_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attention, "window_mask", lambda length, window, device: torch.ones(length, length).tril().bool()
    )

    choice = choose_layout(model := make("mistral"), read_traits(model))

    assert choice.layout is Layout.FLAT_POSITIONS
    assert "differs from one document at a time" in choice.reason


def test_no_right_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "candidates", lambda traits: (Layout.FLAT_POSITIONS,))

    with pytest.raises(ModelError, match="no layout isolates documents in gpt_oss"):
        choose_layout(model := make("gpt_oss"), read_traits(model))


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "falcon"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_probe_leaves_no_trace(name: str, adapter: bool) -> None:
    model = with_lora(make(name), name) if adapter else make(name)
    frozen_dropout = next(iter(model.modules()))
    for module in list(model.modules())[3:5]:
        module.eval()  # a caller's own choice, which a plain model.train() would undo
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    implementation = model.config._attn_implementation
    torch.manual_seed(5)
    state = torch.get_rng_state()

    choose_layout(model, read_traits(model))

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert frozen_dropout.training
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss", "mamba2"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_generate_is_the_same_after_running(name: str, checkpointing: bool) -> None:
    model = make(name)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    before = model.eval().generate(ids, **options)

    run = engine(model.train(), EngineSettings(neftune_noise_alpha=5.0), gradient_checkpointing=checkpointing)
    with run.running():
        for micro in micro_batches(documents(), 3):
            run.backward(micro, batch_targets=20, batch_tokens=40)
    after = model.eval().generate(ids, **options)

    assert torch.equal(before, after)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert not model.is_activation_checkpointing


def test_running_puts_back_what_an_error_interrupts() -> None:
    model = make("llama")
    run = engine(model, gradient_checkpointing=True)

    running = run.running()
    running.__enter__()
    assert model.is_activation_checkpointing
    assert not running.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert model.config._attn_implementation == "sdpa"
    assert not model.is_activation_checkpointing


def test_running_restores_the_callers_recomputation() -> None:
    model = make("llama")
    model.activation_checkpointing_enable()
    run = engine(model, gradient_checkpointing=False)

    with run.running():
        assert not model.is_activation_checkpointing

    assert model.is_activation_checkpointing


def test_masks_that_cannot_be_drawn_are_not_tried() -> None:
    """Explicit masks know of no chunks (Llama 4) and of no convolution (LFM2)."""
    assert Layout.FLAT_MASK not in candidates(read_traits(make("llama4")))
    assert Layout.FLAT_MASK not in candidates(read_traits(make("lfm2")))
    assert Layout.FLAT_MASK in candidates(read_traits(make("gemma3")))


def test_padded_rows_hold_each_document_once() -> None:
    micro = make_micro_batch([Example([7, 8], [7, 8]), Example([4, 5, 6], [-100, 5, 6])], [0, 1])

    inputs = model_inputs(micro, Layout.PADDED, read_traits(make("llama")))
    places = torch.arange(6).reshape(2, 3, 1)  # as if hidden states were their own place

    assert inputs["input_ids"].tolist() == [[7, 8, 0], [4, 5, 6]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert layout.flat_hidden(places, micro, Layout.PADDED).flatten().tolist() == [0, 1, 3, 4, 5]
    assert target_hidden(places, micro, Layout.PADDED).flatten().tolist() == [0, 3, 4]


def test_block_mask_by_hand() -> None:
    micro = make_micro_batch([Example([7, 8], [7, 8]), Example([4, 5, 6], [4, 5, 6])], [0, 1])
    model = make("mistral")
    model.config.sliding_window = 2

    mask = model_inputs(micro, Layout.FLAT_MASK, read_traits(model))["attention_mask"][0, 0]

    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_an_engine_runs_under_a_plan_that_was_read_back() -> None:
    """A plan names the attention; nothing of the probe is needed again."""
    model = make("llama")
    choice = LayoutChoice(Layout.FLAT_DOCUMENTS, attention.NAME, "from plan.json")
    run = Engine(model, read_traits(model), plan(choice), EngineSettings())

    with run.running():
        sums = run.measure(micro_batches(documents(), 99)[0])

    assert sums.num_targets == sum(label >= 0 for example in documents() for label in example.labels[1:])


def test_a_short_convolution_is_not_laid_flat_in_bfloat16_with_freshly_made_weights() -> None:
    from transformers import AutoModelForCausalLM, Lfm2Config

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Lfm2Config(
        vocab_size=64, num_key_value_heads=2, layer_types=["conv", "full_attention"], pad_token_id=0, **sizes
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert choose_layout(model, read_traits(model)).layout is Layout.PADDED
