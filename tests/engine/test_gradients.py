"""Gradients of every architecture, however the batch is cut, equal a float64 reference of one document at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from sartor.engine.traits import OWN_ATTENTION_TYPES, read_traits
from sartor.records import IGNORE_INDEX, EngineSettings, Example, Layout
from tests.engine import reference
from tests.engine.architectures import ARCHITECTURES, WINDOW, make, with_lora
from tests.engine.batches import accumulate, documents, engine

TOLERANCE = 1e-5  # measured: 3e-6 at most over all of these; a wrong window, a leak or a lost cap is 1e-2 and more
FLOOR = 1e-4
ONLY_WITH_LORA = {"llama, adapter on head", "llama, head saved"}  # without it these are "llama"
CASES = [
    (name, adapter)
    for name in ARCHITECTURES
    for adapter in ("full", "lora")
    if adapter == "lora" or name not in ONLY_WITH_LORA
]
CUTS = {"one document": 1, "three documents": 3, "all documents": 99}


@lru_cache(maxsize=1)
def case(name: str, adapter: str) -> tuple[Any, float, dict[str, torch.Tensor]]:
    """The model, its loss and its gradients in the reference; tests of one case follow each other."""
    model = make(name)
    if adapter == "lora":
        model = with_lora(model, name)
    return model, *reference.gradients(model, documents())


def assert_equal_gradients(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    difference, parameter = reference.worst_difference(found, truth, FLOOR)
    assert difference < TOLERANCE, f"{parameter}: {difference:.1e}"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_gradients_equal_one_document_at_a_time(name: str, adapter: str, cut: str, checkpointing: bool) -> None:
    model, loss, truth = case(name, adapter)
    run = engine(model, gradient_checkpointing=checkpointing)

    sums, found = accumulate(run, documents(), CUTS[cut])

    assert float(sums.loss_sum) / sums.num_targets == pytest.approx(loss, rel=1e-6)
    assert_equal_gradients(found, truth)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama", Layout.FLAT_POSITIONS),
        ("llama", Layout.FLAT_MASK),
        ("llama", Layout.PADDED),
        ("llama, eager", Layout.FLAT_POSITIONS),
        ("llama, eager", Layout.FLAT_MASK),
        ("mistral", Layout.FLAT_POSITIONS),
        ("mistral", Layout.FLAT_MASK),
        ("mistral", Layout.PADDED),
        ("gemma2", Layout.FLAT_POSITIONS),
        ("gemma2", Layout.FLAT_MASK),
        ("gemma3", Layout.FLAT_POSITIONS),
        ("gemma3", Layout.FLAT_MASK),
        ("gemma3", Layout.PADDED),
        ("gpt2", Layout.FLAT_POSITIONS),
        ("gpt2", Layout.PADDED),
        ("qwen3_moe", Layout.PADDED),
        ("falcon", Layout.PADDED),
    ],
)
def test_layouts_that_were_not_chosen_are_right_too(name: str, layout: Layout) -> None:
    model, _, truth = case(name, "full")

    _, found = accumulate(engine(model, layout=layout), documents(), 3)

    assert_equal_gradients(found, truth)


def test_per_document_attention_is_given_only_to_types_proven_here() -> None:
    proven = {
        make(name).config.model_type
        for name in ARCHITECTURES
        if engine(make(name)).plan.layout.name == "FLAT_DOCUMENTS"
    }

    assert proven == OWN_ATTENTION_TYPES


@pytest.mark.parametrize("name", [name for name, made in ARCHITECTURES.items() if "sliding_window" in made.options])
def test_documents_are_longer_than_the_window(name: str) -> None:
    assert read_traits(make(name)).sliding_window == WINDOW
    assert max(len(example.input_ids) for example in documents()) > 2 * WINDOW


def test_reference_itself_sees_a_window() -> None:
    """Or the tests of windowed models would prove nothing."""
    windowed = make("mistral")
    open_sight = make("mistral")
    open_sight.config.sliding_window = None

    _, truth = reference.gradients(windowed, documents())
    _, other = reference.gradients(open_sight, documents())

    assert reference.worst_difference(other, truth, FLOOR)[0] > 0.1


def test_a_document_without_targets_changes_nothing() -> None:
    model = make("llama")
    examples = documents()
    silent = [Example(example.input_ids, [IGNORE_INDEX] * len(example.input_ids)) for example in examples]

    _, found = accumulate(engine(model), [silent[3], *examples, silent[1]], 3)

    assert_equal_gradients(found, reference.gradients(model, examples)[1])


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mamba2"])
def test_packed_examples_equal_their_documents(name: str) -> None:
    model, _, truth = case(name, "full")
    examples = documents()
    packed = Example(
        [token for example in examples for token in example.input_ids],
        [label for example in examples for label in example.labels],
        tuple(len(example.input_ids) for example in examples),
    )

    _, found = accumulate(engine(model), [packed], 1)

    assert_equal_gradients(found, truth)


def test_a_float64_model_is_computed_in_float64() -> None:
    model = make("llama", dtype=torch.float64)

    _, found = accumulate(engine(model), documents(), 3)

    # not 1e-15: transformers computes its norms in float32 whatever the model's dtype
    assert reference.worst_difference(found, reference.gradients(model, documents())[1], FLOOR)[0] < 1e-6


def test_label_smoothing_equals_transformers_on_the_same_logits() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    model = make("gemma2")
    examples = [example for example in documents() if any(label >= 0 for label in example.labels[1:])]
    double = reference.in_double(model)
    count = sum(label >= 0 for example in examples for label in example.labels[1:])
    for example in examples:
        logits = double(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits
        labels = torch.tensor([example.labels])
        LabelSmoother(0.2)({"logits": logits}, labels, shift_labels=True, num_items_in_batch=count).backward()
    truth = {name: parameter.grad for name, parameter in double.named_parameters()}

    _, found = accumulate(engine(model, EngineSettings(label_smoothing=0.2)), examples, 3)

    assert_equal_gradients(found, truth)
