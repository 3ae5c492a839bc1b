"""Documents to train on, and an engine around a model, as the trainer would set it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sartor.batching.cut import make_micro_batch
from sartor.engine.layout import LayoutChoice, choose_layout
from sartor.engine.step import Engine
from sartor.engine.traits import read_traits
from sartor.records import IGNORE_INDEX, EngineSettings, Example, Layout, LossSums, MicroBatch, Plan
from tests.engine.architectures import VOCABULARY


def documents() -> list[Example]:
    """Seven of different lengths, most longer than the window; some targets masked, two without any target."""
    generator = torch.Generator().manual_seed(3)
    examples = []
    for length in (5, 9, 3, 12, 1, 7, 6):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = [token if place % 3 else IGNORE_INDEX for place, token in enumerate(ids)]
        examples.append(Example(ids, labels))
    examples[2] = Example(examples[2].input_ids, [IGNORE_INDEX] * 3)
    return examples


def plan(choice: LayoutChoice, **changes: Any) -> Plan:
    """The plan of a tiny run; the loss takes three rows at a time."""
    values: dict[str, Any] = {
        "layout": choice.layout,
        "micro_batch_tokens": 64,
        "gradient_checkpointing": False,
        "loss_chunk_rows": 3,
        "attention": choice.attention,
        "parameter_dtype": "float32",
        "compute_dtype": "float32",
        "num_threads": 1,
        "device": "cpu",
    }
    return Plan(**{**values, **changes})


def engine(
    model: Any,
    settings: EngineSettings | None = None,
    *,
    layout: Layout | None = None,
    **changes: Any,
) -> Engine:
    """An engine under the layout that the probe chooses, or under the given one in the model's own attention."""
    traits = read_traits(model)
    choice = choose_layout(model, traits) if layout is None else LayoutChoice(layout, traits.attention, "asked for")
    return Engine(model, traits, plan(choice, **changes), settings or EngineSettings())


def micro_batches(examples: Sequence[Example], size: int) -> list[MicroBatch]:
    """`size` documents each, in order, with their index as key."""
    keys = range(len(examples))
    return [
        make_micro_batch(examples[start : start + size], keys[start : start + size])
        for start in range(0, len(examples), size)
    ]


def accumulate(
    run: Engine, examples: Sequence[Example], size: int, *, loss_scale: float = 1.0, step: int = 0
) -> tuple[LossSums, dict[str, torch.Tensor]]:
    """Sums and gradients of one optimizer batch, cut into micro-batches of `size` documents; `.grad` is fresh."""
    run.model.zero_grad(set_to_none=True)
    cut = micro_batches(examples, size)
    targets = sum(micro.num_targets for micro in cut)
    tokens = sum(micro.num_tokens for micro in cut)
    parts = []
    with run.running():
        for micro in cut:
            sums = run.backward(micro, batch_targets=targets, batch_tokens=tokens, loss_scale=loss_scale, step=step)
            parts.append(sums)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.num_targets == targets
    return total, gradients(run.model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of each trained parameter; zeros where nothing arrived."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
