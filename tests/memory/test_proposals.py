"""What would make a training fit: every change that applies, with its bytes, from the leanest that leaves it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks import memory_models
from benchmarks.memory import plan_of

from sartor.engine.traits import read_traits
from sartor.memory import rates
from sartor.memory.decide import Proposal
from sartor.memory.estimates import Memory, MemoryEstimates, Shape
from sartor.memory.proposals import Case, proposals
from sartor.memory.search import ExecutionOptions, Setting
from sartor.memory.simulate import Training, meta_model_of
from sartor.memory.speed import Batch, sizes_of


@pytest.fixture(scope="module")
def case() -> Case:
    """One layer on a GPU that has too little memory, with states in the host's."""
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 1
    training = Training()
    plan = replace(plan_of(config, tokens=256, compute="bfloat16", recomputes=True), device="cuda")
    model = meta_model_of(config, "bfloat16", training)
    setting = Setting(256, 1, 64, ExecutionOptions(implementation="fused", states="host"))
    sizes = sizes_of(read_traits(model), model)
    shape = Shape(256, 256, 1.0, Batch(256, 256, 256))

    estimates = MemoryEstimates(model, plan, shape, training, Memory(1 << 20))
    return Case(config, estimates, sizes, rates.listed(rates.card("T4"), "bfloat16"), setting, 1 << 30)


def with_memory(case: Case, num_bytes: int) -> Case:
    found = case.estimates
    return replace(
        case, estimates=MemoryEstimates(found.model, found.plan, found.shape, found.training, Memory(num_bytes))
    )


@pytest.fixture(scope="module")
def found(case: Case) -> dict[str, Proposal]:
    """What is proposed there, by name: nothing of it fits."""
    return {proposal.name: proposal for proposal in proposals(case)}


def test_every_change_is_proposed_from_a_setting_whose_states_are_on_the_host_too(found: dict[str, Proposal]) -> None:
    for name in ("LoRA, rank 16", "QLoRA, rank 16", "8-bit optimizer states", "Adafactor"):
        assert found[name].needed_bytes > 0
        assert not found[name].fits
    assert found["QLoRA, rank 16"].needed_bytes < found["LoRA, rank 16"].needed_bytes
    assert found["LoRA, rank 16"].needed_bytes < found["8-bit optimizer states"].needed_bytes


def test_what_fits_comes_first_and_shorter_rows_and_a_smaller_model_are_among_it(
    case: Case, found: dict[str, Proposal]
) -> None:
    most = max(proposal.needed_bytes for proposal in found.values())
    wider = proposals(replace(with_memory(case, 2 * most), needed_bytes=3 * most))
    fits = [proposal.fits for proposal in wider]
    assert fits == sorted(fits, reverse=True)
    assert sum("rows of at most" in proposal.name for proposal in wider if proposal.fits) == 1
    assert sum("smaller model" in proposal.name for proposal in wider if proposal.fits) == 1


def test_where_no_single_change_suffices_an_adapter_with_shorter_rows_is_proposed(
    case: Case, found: dict[str, Proposal]
) -> None:
    alone = found["QLoRA, rank 16"]
    short = with_memory(case, alone.needed_bytes - 1)
    proposed = {proposal.name: proposal for proposal in proposals(short)}
    both = proposed["QLoRA, rank 16, with rows of at most 128 tokens"]
    assert both.fits
    assert both.needed_bytes < alone.needed_bytes
    assert "--max_length 128" in both.how
    assert not any(one.fits for name, one in proposed.items() if one is not both and "smaller model" not in name)
