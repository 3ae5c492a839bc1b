"""Recomputing only what is cheap: the same gradients, bit for bit, and products are taken once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sartor.engine.recompute import _contexts, is_kept
from sartor.records import EngineSettings, Layout
from tests.engine.architectures import ARCHITECTURES, make, with_lora
from tests.engine.batches import accumulate, documents, engine, micro_batches

CHEAP = {"gradient_checkpointing": True, "recomputed_layers": 0, "recomputes_cheap": True}


class Counted(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    with Counted() as mode:
        yield mode.counts


def found(model: Any, settings: EngineSettings | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(5)
    return accumulate(engine(model, settings, **changes), documents(), 3)[1]


def assert_same_bits(model: Any, settings: EngineSettings | None = None, **changes: Any) -> None:
    kept, again = found(model, settings, **changes), found(model, settings, **{**changes, **CHEAP})
    assert any(bool(gradient.any()) for gradient in kept.values())
    different = [name for name, gradient in kept.items() if not torch.equal(gradient, again[name])]
    assert not different


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_without_recomputation_bit_for_bit(name: str) -> None:
    assert_same_bits(make(name))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_also_with_an_adapter_and_in_half_precision(name: str, compute_dtype: str) -> None:
    assert_same_bits(with_lora(make(name), name), compute_dtype=compute_dtype)
    assert_same_bits(make(name), compute_dtype=compute_dtype)


@pytest.mark.parametrize("layout", [None, Layout.PADDED, Layout.FLAT_MASK])
def test_also_with_dropout_and_noise_which_are_drawn_again(layout: Layout | None) -> None:
    model = make("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    settings = EngineSettings(neftune_noise_alpha=5.0)
    assert_same_bits(model, settings, layout=layout)
    llama = make("llama")
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.3
    assert_same_bits(llama, settings, layout=layout)


def test_products_and_attention_are_taken_once_and_what_is_cheap_twice() -> None:
    counts = []
    for changes in ({}, CHEAP, {"gradient_checkpointing": True}):
        run = engine(make("llama"), **changes)
        (micro,) = micro_batches(documents(), 99)
        with run.running(), counted() as operators:
            run.backward(micro, batch_targets=9, batch_tokens=99)
        counts.append(operators)
    kept, cheap, whole = counts
    for name in ("mm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"):
        assert cheap.get(name) == kept.get(name)
    assert whole["mm"] == kept["mm"] + 2 * 6  # of each layer's seven the last is not needed
    for name in ("silu", "rsqrt", "cos"):
        assert cheap[name] == whole[name]
    assert cheap["silu"] == 2 * kept["silu"]


def test_the_first_layers_can_be_recomputed_whole_and_the_others_cheaply() -> None:
    calls: list[int] = []
    model = make("llama, tied")
    for number, layer in enumerate(model.model.layers):
        layer.mlp.act_fn = Told(calls, number)
    run = engine(model, **{**CHEAP, "recomputed_layers": 1})
    calls.clear()
    with counted() as operators:
        again = accumulate(run, documents(), 99)[1]
    assert calls == [0, 1, 1, 0]
    with run.running():
        functions = [layer._gradient_checkpointing_func for layer in model.model.layers]
    assert ["context_fn" in function.keywords for function in functions] == [False, True]
    plain = engine(model)
    with counted() as kept:
        whole = accumulate(plain, documents(), 99)[1]
    assert operators["mm"] == kept["mm"] + 6
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not model.is_activation_checkpointing


class Told(torch.nn.Module):
    """An activation function that says when it runs."""

    def __init__(self, calls: list[int], number: int) -> None:
        super().__init__()
        self.calls, self.number = calls, number

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls.append(self.number)
        return torch.nn.functional.silu(hidden)


def test_replanning_goes_from_nothing_to_cheap_to_whole_layers() -> None:
    model = make("llama")
    run = engine(model)
    (micro,) = micro_batches(documents(), 99)
    counts = []
    with run.running():
        for changes in ({}, CHEAP, {**CHEAP, "recomputed_layers": None}):
            run.replan(dataclasses.replace(run.plan, **changes))
            model.zero_grad(set_to_none=True)
            with counted() as operators:
                run.backward(micro, batch_targets=9, batch_tokens=99)
            counts.append((operators["mm"], operators["silu"]))
    assert counts[1] == (counts[0][0], 2 * counts[0][1])
    assert counts[2] == (counts[0][0] + 2 * 6, 2 * counts[0][1])


class WritesInPlace(torch.nn.Module):
    """A layer's projection whose result is written to."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result = self.inner(hidden)
        return result.view(-1, result.shape[-1]).add_(1.0).view_as(result).mul_(2.0)


def test_a_product_that_the_model_writes_to_is_taken_again() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj = WritesInPlace(layer.mlp.up_proj)
    assert_same_bits(model)


@pytest.mark.parametrize("tail", ["added", "scaled"])
def test_a_layers_last_product_is_kept_only_where_what_follows_needs_it(tail: str) -> None:
    keeping, returning = _contexts()
    states, weight = torch.randn(16, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

    def layer() -> torch.Tensor:
        product = torch.mm(torch.tanh(torch.mm(states, weight)), weight)
        return states + product.view(16, 8) if tail == "added" else product * torch.sigmoid(product)

    with keeping:
        result = layer()
    assert [kept.parts is not None for kept in keeping._results] == [True, tail == "scaled"]
    with counted() as operators, returning:
        again = layer()
    assert torch.equal(result, again)
    assert operators.get("mm", 0) == (1 if tail == "added" else 0)
    assert all(kept.parts is None for kept in keeping._results)  # handed over, so that memory is freed as it was used


A_16x8, B_8x4, B_8x65 = torch.empty(16, 8), torch.empty(8, 4), torch.empty(8, 65)


@pytest.mark.parametrize(
    ("operator", "args", "expected"),
    [
        (torch.ops.aten.mm.default, (A_16x8, B_8x4), True),
        (torch.ops.aten.mm.default, (A_16x8, B_8x65), False),  # an adapter's way back from its rank
        (torch.ops.aten.addmm.default, (torch.empty(4), A_16x8, B_8x4), True),
        (torch.ops.aten.addmm.default, (torch.empty(65), A_16x8, B_8x65), False),
        (torch.ops.aten.bmm.default, (torch.empty(2, 99, 8), torch.empty(2, 8, 99)), False),  # scores
        (torch.ops.aten.bmm.default, (torch.empty(2, 99, 99), torch.empty(2, 99, 8)), True),
        (torch.ops.aten.silu.default, (A_16x8,), False),
        (torch.ops.aten._to_copy.default, (A_16x8,), False),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, (A_16x8, A_16x8, A_16x8), True),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, (A_16x8, A_16x8, A_16x8, 0.1), False),
        (torch.ops.aten._scaled_dot_product_efficient_attention.default, (*[A_16x8] * 3, None, True, 0.1), False),
        (torch.ops.aten._scaled_dot_product_efficient_attention.default, (*[A_16x8] * 3, None, True), True),
    ],
)
def test_what_is_kept_takes_many_operations_for_each_value(operator: Any, args: Any, expected: bool) -> None:
    assert is_kept(operator, args, {}) is expected
