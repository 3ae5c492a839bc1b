"""Compiled layers: the same gradients up to rounding, one program whatever the lengths, and a model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sartor.engine import attention, compiled
from sartor.errors import ConfigurationError
from sartor.records import Example
from tests.engine.architectures import VOCABULARY, make, with_lora
from tests.engine.batches import accumulate, documents, engine, micro_batches

RECOMPUTING: dict[str, Any] = {"gradient_checkpointing": True}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Counting:
    """A backend that compiles nothing, and counts the programs that it is given."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.programs += 1
        return graph.forward


def relative(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    differences = [float((found[name] - value).norm() / value.norm().clamp(min=1e-4)) for name, value in truth.items()]
    return max(differences)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("llama", "eager"),
        ("gpt2", "eager"),
        pytest.param("llama", "aot_eager", marks=pytest.mark.slow),
        pytest.param("gemma2", "aot_eager", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_layers_as_they_are(name: str, backend: str) -> None:
    model = make(name).train()
    truth = accumulate(engine(model), documents(), 3)[1]
    found = accumulate(engine(model, compile_backend=backend), documents(), 3)[1]

    assert relative(found, truth) < 2e-6


@pytest.mark.slow
def test_also_with_an_adapter_and_with_layers_recomputed() -> None:
    model = with_lora(make("llama"), "llama").train()
    truth = accumulate(engine(model), documents(), 3)[1]

    assert relative(accumulate(engine(model, compile_backend="aot_eager"), documents(), 3)[1], truth) < 2e-6
    recomputing = engine(model, compile_backend="aot_eager", **RECOMPUTING)
    assert relative(accumulate(recomputing, documents(), 3)[1], truth) < 2e-6


@pytest.mark.slow  # compiles C++
def test_gradients_of_torchs_own_compiler() -> None:
    compiled.check_compiler("inductor", torch.device("cpu"))
    model = make("llama").train()
    truth = accumulate(engine(model), documents(), 3)[1]

    assert relative(accumulate(engine(model, compile_backend="inductor"), documents(), 3)[1], truth) < 1e-5


def test_other_lengths_and_other_numbers_of_documents_need_no_new_program() -> None:
    counting: Any = Counting()
    model = make("llama").train()
    running = engine(model, compile_backend=counting)
    generator = torch.Generator().manual_seed(0)

    def step(lengths: tuple[int, ...]) -> None:
        rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        for micro in micro_batches([Example(ids, ids) for ids in rows], len(rows)):
            running.backward(micro, batch_targets=1, batch_tokens=1)

    with running.running():
        step((5, 9))
        first = counting.programs
        assert first > 0
        for lengths in ((4, 4, 4), (17,), (2, 30, 7, 8), (5, 9)):
            step(lengths)

    assert counting.programs == first


def test_the_model_is_left_as_it_was() -> None:
    model = make("llama").train()
    running = engine(model, compile_backend="eager")
    micro = next(iter(micro_batches(documents(), 2)))
    with running.running():
        running.backward(micro, batch_targets=1, batch_tokens=1)
        assert all(layer._compiled_call_impl is None for layer in model.model.layers)  # evaluation and generation
    from transformers import AttentionInterface

    assert attention.NAME not in AttentionInterface()


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'inductr' is unknown here: choose one of .*inductor"):
        compiled.check_compiler("inductr", torch.device("cpu"))


def test_no_c_compiler_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigurationError, match="needs a C\\+\\+ compiler"):
        compiled.check_compiler("inductor", torch.device("cpu"))
