"""The search: the fastest that fits, few settings simulated, what the user chose obeyed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks import memory_models
from hypothesis import given
from hypothesis import strategies as st

from sartor.device import CPU
from sartor.engine import attention
from sartor.engine.traits import read_traits
from sartor.errors import ConfigurationError
from sartor.memory import estimates, plan_text, rates
from sartor.memory.decide import Decider, Proposal
from sartor.memory.estimates import Memory, MemoryEstimates, Shape
from sartor.memory.prediction import Component, Prediction, Stretch
from sartor.memory.search import ExecutionOptions, SearchSpace, Setting, search, search_space
from sartor.memory.simulate import Known, Training, meta_model_of
from sartor.memory.speed import Batch, Sizes, sizes_of, step_seconds
from sartor.records import Layout, Plan
from tests.memory.lines import between_corners, interpolated

LAYERS = 8


def all_free(longest: int = 300, most: int = 2_048) -> SearchSpace:
    return search_space(
        tokens=None,
        layers=None,
        rows=None,
        smallest_tokens=longest,
        largest_tokens=most,
        num_layers=LAYERS,
        largest_rows=1_024,
    )


def needs(setting: Setting) -> int:
    """Convex along each: the larger of two moments."""
    kept = LAYERS - setting.recomputed_layers
    activations = 1_000 + setting.micro_batch_tokens * (kept * 20 + setting.recomputed_layers * 3)
    at_the_loss = 5_000 + 100 * min(setting.loss_chunk_rows, setting.micro_batch_tokens)
    return max(activations + 60 * setting.micro_batch_tokens, activations + at_the_loss)


def takes(setting: Setting) -> float:
    return (
        (1 + setting.recomputed_layers / LAYERS / 3)
        * (1 + 20 / setting.micro_batch_tokens)
        * (1 + 5 / setting.loss_chunk_rows)
    )


def counted(function: Callable[[Setting], int]) -> tuple[Callable[[Setting], int], set[Setting]]:
    asked: set[Setting] = set()

    def ask(setting: Setting) -> int:
        asked.add(setting)
        return function(setting)

    return ask, asked


def test_where_everything_fits_one_setting_is_simulated_and_nothing_recomputed() -> None:
    ask, asked = counted(needs)
    setting, fits = search(all_free(), ask, takes, 10**9, between_corners(all_free(), ask))
    assert fits
    assert setting.recomputed_layers == 0
    assert takes(setting) <= 1.02 * takes(Setting(2_048, 0, 1_024))
    assert setting.micro_batch_tokens == 768  # the fewest within 2 %: 1.026 of 1.010
    assert asked == {setting}


@given(st.integers(10_000, 500_000), st.sampled_from([100, 300, 700]))
def test_what_is_chosen_fits_and_few_settings_are_simulated(available: int, longest: int) -> None:
    free = all_free(longest)
    ask, asked = counted(needs)
    setting, fits = search(free, ask, takes, available, between_corners(free, ask))
    assert fits == (needs(free.leanest) <= available)
    assert len(asked) <= 24
    if fits:
        assert needs(setting) <= available
    else:
        assert setting == free.leanest


@pytest.mark.parametrize("available", [70_000, 100_000, 150_000])
def test_what_is_chosen_is_about_as_fast_as_the_fastest_that_fits(available: int) -> None:
    free = all_free()
    setting, _ = search(free, needs, takes, available, between_corners(free, needs))
    fitting = [
        candidate
        for tokens in free.tokens
        for layers in free.layers
        for rows in free.rows
        if needs(candidate := Setting(tokens, layers, rows)) <= available
    ]
    assert takes(setting) <= 1.1 * min(map(takes, fitting))


def test_less_memory_takes_longer_and_some_layers_come_before_all() -> None:
    about = between_corners(all_free(), needs)
    found = [search(all_free(), needs, takes, available, about)[0] for available in range(40_000, 200_000, 2_000)]
    times = [takes(setting) for setting in found]
    assert all(later <= earlier * 1.1 for earlier, later in itertools.pairwise(times))
    assert times[-1] < times[0]
    assert any(0 < setting.recomputed_layers < LAYERS for setting in found)


def test_a_value_between_corners_is_on_or_under_the_line_in_tokens_and_layers() -> None:
    box = SearchSpace(all_free().tokens, all_free().layers, (64,))
    for tokens in box.tokens:
        for layers in box.layers:
            setting = Setting(tokens, layers, 64)
            assert needs(setting) <= interpolated(box, needs, setting) + 1e-6


def test_what_the_user_chose_is_the_only_choice() -> None:
    free = search_space(tokens=100, layers=LAYERS, rows=7, smallest_tokens=300, largest_tokens=2_048, num_layers=LAYERS,
                   largest_rows=1_024)  # fmt: skip
    assert search(free, needs, takes, 10**9, between_corners(free, needs))[0] == Setting(100, LAYERS, 7) == free.leanest


def test_no_fewer_tokens_than_the_longest_document_are_tried() -> None:
    assert min(all_free(longest=700).tokens) == 700
    assert all_free(longest=5_000).tokens == (5_000,)


# --- time ------------------------------------------------------------------------------------------------------------

TABLE = Sizes(LAYERS, 20_060_000, 28_975_104, 49_000_000, 49_000_000, 576)
"""The model of the table in docs/log.md."""


def seconds(tokens: int, layers: int = 0, *, half: bool = False) -> float:
    rate = rates.measured(2.5e11 if half else 1.6e11, CPU, "float32")
    dtype = "bfloat16" if half else "float32"
    plan = Plan(Layout.FLAT_DOCUMENTS, tokens, layers > 0, 1_024, "sdpa", "float32", dtype, 1, "cpu",
                recomputed_layers=layers)  # fmt: skip
    return step_seconds(TABLE, Batch(3_300, 3_000, 170), rate, plan)


def test_on_a_cpu_a_thousand_tokens_are_as_fast_as_two_in_float32_and_not_in_half_precision() -> None:
    assert seconds(1_024) <= 1.02 * seconds(2_048)
    assert seconds(512) > 1.03 * seconds(2_048)
    assert seconds(1_024, half=True) > 1.1 * seconds(2_048, half=True)


def test_recomputing_every_layer_costs_a_sixth_where_the_head_is_most_of_the_work() -> None:
    assert 1.1 < seconds(2_048, LAYERS) / seconds(2_048) < 1.2  # measured: 452 / 385
    assert seconds(2_048, LAYERS // 2) < seconds(2_048, LAYERS)


# --- the data --------------------------------------------------------------------------------------------------------


def test_the_worst_micro_batch_holds_the_longest_document_and_is_full() -> None:
    shape = Shape(300, 5_000, 0.5, Batch(4_000, 2_000, 100))
    work = shape.work(600, Layout.FLAT_DOCUMENTS)
    assert work.document_lengths == (300, 150, 150)
    assert (work.num_targets, work.num_micro_batches) == (300, 2)
    assert shape.work(100, Layout.FLAT_DOCUMENTS).document_lengths == (300,)
    assert shape.work(700, Layout.PADDED).document_lengths == (300, 300)
    assert shape.work(9_000, Layout.FLAT_DOCUMENTS).num_micro_batches == 1


# --- what is listed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T4", "rtx 4090", "NVIDIA-H100", "A100-80GB", "a100 40gb", "RTX4090", "H200", "L4"])
def test_gpus_are_found_however_they_are_spelt(name: str) -> None:
    card = rates.card(name)
    assert 10e9 < card.memory_bytes < 160e9
    assert rates.listed(card, "float32").flops_per_second < rates.listed(card, "bfloat16").flops_per_second
    assert "listed" in rates.listed(card, "bfloat16").source


def test_an_unknown_gpu_and_no_amount_of_memory_are_errors_that_say_what_to_give() -> None:
    with pytest.raises(ConfigurationError, match=r"not listed; listed are T4, .*--memory 16GB"):
        rates.card("Voodoo2")
    with pytest.raises(ConfigurationError, match="write it as 16GB"):
        rates.memory_bytes("much")
    assert rates.memory_bytes("16GB") == 16_000_000_000
    assert rates.memory_bytes("1.5 GiB") == 3 << 29


# --- what is compared with free memory -------------------------------------------------------------------------------


def prediction(num_bytes: int, *, margin: int = 0, losses: float = 1.0) -> Prediction:
    stretch = Stretch("update", None, {Component.PARAMETERS: num_bytes})
    return Prediction((stretch,), margin, 0, int(num_bytes * losses))


def deciding(available: int, needed: Callable[[Setting], int]) -> Decider:
    """A decider whose predictions are given."""
    plan = Plan(Layout.FLAT_DOCUMENTS, 1_024, False, 1_024, "sdpa", "float32", "float32", 1, "cpu")
    shape = Shape(300, 5_000, 1.0, Batch(4_000, 4_000, 100), num_steps=10)
    found = MemoryEstimates(torch.nn.Linear(1, 1), plan, shape, Training(), Memory(available, reserve_bytes=0))

    def foreseen(setting: Setting, num_layers: int, *, is_rough: bool = False) -> Prediction:
        return prediction(needed(setting))

    found.prediction = foreseen  # type: ignore[method-assign]
    return Decider(found, all_free(), TABLE, rates.measured(1e11, CPU, "float32"))


def test_margin_losses_and_reserve_are_kept_free_and_what_is_held_counts_once() -> None:
    found = deciding(0, needs)._estimates
    found.memory = Memory(0, held_bytes=400, reserve_bytes=50)
    assert found.needed_bytes(prediction(1_000, margin=20, losses=1.5)) == 600 * 1.5 + 20 + 50


def test_what_does_not_fit_is_said_with_the_bytes_that_are_missing() -> None:
    leanest = needs(all_free().leanest)
    decision = deciding(leanest - 1_000, needs).decide(compares=True)
    assert (decision.fits, decision.missing_bytes, decision.neighbours) == (False, 1_000, ())
    enough = Proposal("LoRA", "--use_peft", "trains less", 12_000_000, 1.0, True)
    short = Proposal("Adafactor", "--optim adafactor", "another optimizer", 2_500_000_000, 2.0, False)
    lines = list(plan_text.proposal_lines(replace(decision, proposals=(enough, short))))
    assert "any one of these makes it fit" in lines[0]
    assert "12 MB" in lines[1]
    assert "2.50 GB" in lines[2]
    assert "not enough alone" in lines[2]
    assert deciding(leanest, needs).decide(compares=False).missing_bytes == 0


@pytest.fixture(scope="module")
def known() -> Known:
    """What any test of this file has simulated for that decider."""
    return {}


def simulating(available: int, known: Known) -> tuple[Decider, MemoryEstimates]:
    """A decider that simulates a model of twelve layers, 1,000 tokens at once at most."""
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 12
    training = Training(arrival_dtype="bfloat16")
    model = meta_model_of(config, "float32", training)
    plan = Plan(Layout.FLAT_DOCUMENTS, 1_024, False, 1_024, attention.NAME, "float32", "float32", 1, "cpu",
                optimizer_implementation="fused")  # fmt: skip
    shape = Shape(300, 5_000, 1.0, Batch(3_000, 3_000, 300))
    found = MemoryEstimates(model, plan, shape, training, Memory(available))
    found._few_layers = known
    executions = (ExecutionOptions(False, "fused"), ExecutionOptions(True, "fused"))
    free = search_space(tokens=None, layers=None, rows=1_024, smallest_tokens=300, largest_tokens=1_000, num_layers=12,
                   largest_rows=1_024, executions=executions)  # fmt: skip
    return Decider(found, free, sizes_of(read_traits(model), model), rates.measured(1e11, CPU, "float32")), found


@pytest.mark.slow
@pytest.mark.parametrize("eighths", [2, 6])
def test_estimates_from_three_simulations_choose_as_well_as_the_line_between_corners(
    eighths: int, known: Known
) -> None:
    decider, _ = simulating(10**12, known)
    most, least = (
        decider.needed(Setting(1_000, 0, 1_024, ExecutionOptions(False, "fused"))),
        decider.needed(decider._free.leanest),
    )
    available = least + (most - least) * eighths // 8
    decider, here = simulating(available, known)
    chosen, fits = decider._searched(decider._free)
    assert here.num_simulated <= 5
    lines, _ = simulating(available, known)
    about = between_corners(lines._free, lines.needed, lines.saved)
    by_lines, also_fits = search(lines._free, lines.needed, lines.seconds, available, about)
    assert fits
    assert also_fits
    assert decider.seconds(chosen) <= 1.03 * decider.seconds(by_lines)
    assert decider.needed(chosen) <= available


def test_an_estimate_counts_what_the_hosts_memory_spares(known: Known) -> None:
    decider, _ = simulating(10**12, known)
    device = Setting(512, 6, 1_024, ExecutionOptions(False, "fused"))
    host = replace(device, execution=replace(device.execution, states="host"))
    one, other = (decider._about(decider._free, setting, 1_000) for setting in (device, host))
    assert one - other == 8 * decider._sizes.trained_weights


def test_where_rough_simulations_are_wrong_all_are_made_in_full(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    decider, here = simulating(10**12, known)
    available = decider.needed(Setting(1_000, 0, 1_024, ExecutionOptions(False, "fused"))) * 6 // 10
    decider, here = simulating(available, known)
    simulated = estimates.simulate_model

    def too_low(*given: Any, is_rough: bool) -> Prediction:
        found = simulated(*given, is_rough=is_rough)
        return prediction(1) if is_rough else found

    monkeypatch.setattr(estimates, "simulate_model", too_low)
    decision = decider.decide(compares=False)
    assert not here.is_rough_exact
    assert decision.fits
    assert decision.chosen.needed_bytes == here.needed_bytes(decision.prediction) <= available


def test_states_on_the_host_say_what_they_take_of_its_memory() -> None:
    setting = Setting(1_024, 0, 64, ExecutionOptions(implementation="fused", states="host"))
    assert plan_text.optimizer_in_words(setting, 64_200_000_000) == (
        "optimizer states on the host (64.2 GB of its memory), its step fused"
    )


def test_a_decision_that_fits_says_what_neighbours_cost_and_how_long_the_run_takes() -> None:
    decider = deciding(10**9, needs)
    decider._other_optimizers = lambda chosen: []  # type: ignore[method-assign]
    decision = decider.decide(compares=True)
    assert decision.run_seconds == 10 * decision.chosen.seconds
    labels = {option.label: option for option in decision.neighbours}
    everything = labels["every layer recomputed"]
    assert everything.needed_bytes < decision.chosen.needed_bytes
    assert everything.seconds > decision.chosen.seconds
    assert len(labels) >= 4
    assert len(list(plan_text.neighbour_lines(decision))) == len(labels)
