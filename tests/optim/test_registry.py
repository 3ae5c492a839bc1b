"""The registry of optimizers: what a row says is what the optimizer does, and none is missing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers.training_args import OptimizerNames

from sartor.optim import registry
from sartor.optim.registry import ROWS, OptimizerFacts
from sartor.optim.transaction import goes_in_pieces
from tests.optim.stepped import values

CONSTRUCTED = [facts for facts in ROWS if facts.constructor is not None and not facts.refusal]
PIECEWISE = [facts for facts in CONSTRUCTED if facts.goes_in_pieces]


def label(facts: OptimizerFacts) -> str:
    assert facts.constructor is not None
    return facts.name or facts.constructor().__name__


def parameters(facts: OptimizerFacts) -> list[nn.Parameter]:
    """Matrices of two shapes, and a vector where it is not an optimizer of matrices alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 10), (4, 8)) if label(facts) == "Muon" else ((6, 10), (4, 8), (12,))
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made:
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to_sparse() if label(facts) == "SparseAdam" else gradient
    return made


def made(facts: OptimizerFacts, taken: Sequence[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    assert facts.constructor is not None
    optimizer: torch.optim.Optimizer = facts.constructor()(list(taken), lr=0.01, **facts.arguments, **options)
    return optimizer


def kept_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the arrays among its states; counts of steps are numbers."""
    found = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in found if torch.is_tensor(value) and value.dim())


# --- none is missing -------------------------------------------------------------------------------------------------


def test_every_name_of_transformers_has_one_row_and_every_row_such_a_name() -> None:
    assert sorted(facts.name for facts in ROWS if facts.name) == sorted(one.value for one in OptimizerNames)


def test_every_optimizer_of_torch_has_a_row() -> None:
    found = [value for value in vars(torch.optim).values() if isinstance(value, type)]
    kinds = [kind for kind in found if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer]
    assert len(kinds) > 10
    assert [kind.__name__ for kind in kinds if registry.of_class(kind) is None] == []


def test_a_name_says_what_transformers_makes_of_it(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    for facts in CONSTRUCTED:
        if facts.name:
            args = TrainingArguments(output_dir=str(tmp_path), optim=facts.name, report_to=[])
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            assert facts.constructor is not None
            assert kind is facts.constructor()
            assert bool(options.get("fused")) == (facts.implementation == "fused")
            assert {name: options[name] for name in facts.arguments} == facts.arguments


# --- what a row says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", CONSTRUCTED, ids=label)
def test_states_take_the_bytes_that_a_row_says(facts: OptimizerFacts) -> None:
    choices: list[dict[str, Any]] = [{}, *({name: 0.5} for name in facts.option_states)]
    for options in choices:
        own = {name: True if name in ("amsgrad", "centered") else value for name, value in options.items()}
        taken = parameters(facts)
        optimizer = made(facts, taken, **own)
        optimizer.step()
        assert kept_bytes(optimizer) == sum(facts.parameter_bytes(one, optimizer.defaults) for one in taken)


@pytest.mark.parametrize("facts", PIECEWISE, ids=label)
def test_a_step_in_pieces_is_the_step(facts: OptimizerFacts) -> None:
    whole = parameters(facts)
    together = made(facts, whole)
    apart = [made(facts, [one]) for one in copy.deepcopy(whole)]
    for one, other in zip(whole, apart, strict=True):
        values(other)[0].grad = one.grad
    for optimizer in (together, *apart, together, *apart):
        optimizer.step()
    assert all(torch.equal(one, values(other)[0]) for one, other in zip(whole, apart, strict=True))


@pytest.mark.parametrize("facts", [facts for facts in PIECEWISE if facts.step_unit == "value"], ids=label)
def test_a_step_on_a_part_of_the_values_is_the_step_on_them(facts: OptimizerFacts) -> None:
    whole = parameters(facts)
    halves = [nn.Parameter(half.clone()) for one in whole for half in one.detach().flatten().chunk(2)]
    gradients = [half for one in whole if one.grad is not None for half in one.grad.flatten().chunk(2)]
    for half, gradient in zip(halves, gradients, strict=True):
        half.grad = gradient.clone()
    for optimizer in (made(facts, whole), made(facts, halves)):
        optimizer.step()
    found = [half.detach() for half in halves]
    for number, one in enumerate(whole):
        torch.testing.assert_close(torch.cat(found[2 * number : 2 * number + 2]), one.detach().flatten())


@pytest.mark.parametrize("facts", [facts for facts in PIECEWISE if facts.step_unit == "value"], ids=label)
def test_torch_has_a_fused_kernel_on_a_cpu_where_a_row_says_so(facts: OptimizerFacts) -> None:
    if "cpu" in facts.fused_on:
        made(facts, parameters(facts), fused=True).step()
    else:
        with pytest.raises((TypeError, RuntimeError)):
            made(facts, parameters(facts), fused=True).step()


def test_a_subclass_is_not_taken_for_what_it_is_of_but_keeps_about_as_much() -> None:
    class Own(torch.optim.SGD):
        pass

    assert registry.of_class(Own) is None
    assert registry.of_base(Own) is registry.named("sgd")


def test_an_own_subclass_is_stepped_on_at_once() -> None:
    class Own(torch.optim.SGD):
        pass

    taken = parameters(registry.named("sgd"))
    assert goes_in_pieces(torch.optim.SGD(taken))
    assert not goes_in_pieces(Own(taken))


def test_of_an_unknown_name_nothing_is_known() -> None:
    assert registry.state_bytes("madgrad") is None
    assert registry.implementations("madgrad", "cpu") == ()
    assert not registry.named("madgrad").goes_in_pieces
