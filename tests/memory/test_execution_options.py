"""Ways to compute the same: when the search takes which, what each needs and how long it takes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from benchmarks import memory_measure, memory_models
from benchmarks.memory import plan_of, recomputation

from sartor.device import CPU
from sartor.errors import ConfigurationError
from sartor.memory import optimizers, rates
from sartor.memory.estimates import Memory, MemoryEstimates, Shape
from sartor.memory.plan import with_optimizer
from sartor.memory.prediction import Component, Training, Work
from sartor.memory.search import ExecutionOptions, SearchSpace, Setting, search, search_space
from sartor.memory.simulate import meta_model_of, simulate, simulate_model
from sartor.memory.speed import Batch, Sizes, step_seconds
from sartor.optim import registry, transaction
from sartor.records import EngineSettings, Layout, Plan
from sartor.run.planning import execution_options_of
from tests.memory.lines import between_corners

WORK = Work((100, 60, 40), 150)
ALL = tuple(
    ExecutionOptions(*execution)
    for execution in itertools.product((False, True), ("foreach", "for-loop"), ("device", "host"))
)
LAYERS = 8


def plan(recomputes: bool | str = False, **changes: Any) -> Plan:
    config = memory_models.small("llama, tied")
    found = plan_of(config, tokens=200, compute="float32", recomputes=recomputes)
    return dataclasses.replace(found, **changes)


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["fused", "for-loop"])
def test_states_that_are_streamed_are_foreseen_as_the_allocator_counts_them(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where the host's memory and the device's are one: both copies count."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(transaction, "PIECE_BYTES", 1 << 20)
    config = memory_models.small("llama, tied")
    taken = plan(optimizer_states="host", optimizer_implementation=implementation, loss_chunk_rows=256)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    held_bytes = memory_measure.held_bytes(model)
    with memory_measure.AllocatorPeak() as peak:
        groups = optimizers.groups_of(model, model.get_input_embeddings())
        optimizer = optimizers.maker("adamw_torch", is_cuda=False, implementation=implementation)(groups)
        engine, stepper = memory_measure.stepper(model, taken, EngineSettings(), optimizer)
        batch = memory_measure.examples(WORK.document_lengths, WORK.num_targets, config.vocab_size)
        memory_measure.take_steps(engine, stepper, batch)
    training = Training(optimizer="adamw_torch")
    foreseen = simulate(config, taken, WORK, training)
    assert foreseen.peak_bytes == pytest.approx(held_bytes + peak.num_bytes, rel=0.005)
    on_device = simulate(config, dataclasses.replace(taken, optimizer_states="device"), WORK, training)
    one, other = (next(s for s in found.timeline if s.phase == "update") for found in (foreseen, on_device))
    assert one.num_bytes >= other.num_bytes + (8 << 20 if implementation == "fused" else 0)


def cuda(**changes: Any) -> Any:
    config = memory_models.small("llama, tied")
    training = Training(optimizer="adamw_torch")
    return simulate(config, plan(device="cuda", **changes), WORK, training)


def test_on_a_gpu_the_hosts_states_are_not_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "PIECE_BYTES", 1 << 20)
    host, device = (cuda(optimizer_states=place, optimizer_implementation="fused") for place in ("host", "device"))
    numbers = 8_192 * 256 + 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 704 + 2 * 256) + 256
    for one, other in zip(host.timeline, device.timeline, strict=True):
        if one.phase in ("forward", "loss", "backward", "clip"):
            spared = other.components[Component.OPTIMIZER] - one.components[Component.OPTIMIZER]
            assert 8 * numbers <= spared <= 8.01 * numbers + 512 * 80
    update = next(stretch for stretch in host.timeline if stretch.phase == "update")
    piece_bytes = 3 * max(transaction.PIECE_BYTES, 4 * 8_192 * 256)  # two states, and the parameters as they were
    assert update.num_bytes <= 2 * 4 * numbers + piece_bytes + (1 << 20)
    assert host.peak_bytes < device.peak_bytes


def test_not_fused_an_update_needs_temporaries() -> None:
    needed = [
        max(one.num_bytes for one in cuda(optimizer_implementation=name).timeline if one.phase == "update")
        for name in ("fused", "for-loop", "foreach")
    ]
    assert needed[0] < min(needed[1:])


# --- the search ------------------------------------------------------------------------------------------------------


def needs(setting: Setting) -> int:
    kept = LAYERS - setting.recomputed_layers
    layer = 11 if setting.execution.recomputes_cheap else 20
    states = 0 if setting.execution.states == "host" else 40_000
    temporaries = 0 if setting.execution.implementation == "for-loop" else 10_000
    activations = setting.micro_batch_tokens * (kept * layer + setting.recomputed_layers * 3)
    return 20_000 + states + max(activations + 100 * setting.loss_chunk_rows, temporaries)


def saved(execution: ExecutionOptions) -> int:
    return (40_000 if execution.states == "host" else 0) + (10_000 if execution.implementation == "for-loop" else 0)


def takes(setting: Setting) -> float:
    kept = LAYERS - setting.recomputed_layers
    again = setting.recomputed_layers / 3 + (kept / 50 if setting.execution.recomputes_cheap else 0)
    slow = 0.4 * (setting.execution.states == "host") + 0.01 * (setting.execution.implementation == "for-loop")
    return (8 + again) * (1 + 20 / setting.micro_batch_tokens) + slow


def free(executions: tuple[ExecutionOptions, ...] = ALL) -> SearchSpace:
    return search_space(
        tokens=None, layers=None, rows=256, smallest_tokens=300, largest_tokens=1_024, num_layers=LAYERS,
        largest_rows=256, executions=executions,
    )  # fmt: skip


def test_where_all_fits_nothing_is_given_up_for_memory() -> None:
    setting, fits = search(free(), needs, takes, 10**9, between_corners(free(), needs, saved))
    assert fits
    assert (setting.execution, setting.recomputed_layers) == (ALL[0], 0)


def test_less_memory_is_met_first_by_what_costs_least() -> None:
    amounts = range(30_000, 280_000, 2_000)
    about = between_corners(free(), needs, saved)
    found = [search(free(), needs, takes, available, about)[0] for available in amounts]
    enough = [needs(free().leanest) <= available for available in amounts]
    assert all(needs(one) <= available for one, available, fits in zip(found, amounts, enough, strict=True) if fits)
    executions = [setting.execution for setting in found]
    cheap = [execution.recomputes_cheap for execution in executions]
    assert any(cheap)
    assert not cheap[-1]
    assert {execution.states for execution in executions} == {"device", "host"}
    assert executions[-1].states == "device"
    times = [takes(setting) for setting in found]
    assert all(later <= earlier * 1.1 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("available", [60_000, 90_000, 120_000, 150_000, 180_000, 220_000])
def test_what_is_chosen_is_about_the_fastest_of_all_that_fit_and_few_are_simulated(available: int) -> None:
    asked: set[Setting] = set()

    def ask(setting: Setting) -> int:
        asked.add(setting)
        return needs(setting)

    box = free()
    setting, fits = search(box, ask, takes, available, between_corners(box, ask, saved))
    every = (Setting(*values) for values in itertools.product(box.tokens, box.layers, box.rows, box.executions))
    best = min(takes(one) for one in every if needs(one) <= available)
    assert fits
    assert takes(setting) <= 1.05 * best
    assert len(asked) <= 30


def test_what_spares_least_is_the_leanest() -> None:
    assert free().leanest.execution == ExecutionOptions(True, "for-loop", "host")


# --- what is left open -----------------------------------------------------------------------------------------------


def executions(device: str = "cuda", optimizer: str = "adamw_torch_fused", *, host: int | None = None,
         **asked: Any) -> tuple[ExecutionOptions, ...]:  # fmt: skip
    settings = EngineSettings(**asked)
    base = with_optimizer(plan(device=device, compile_backend=settings.compile_backend), settings, optimizer)
    model = meta_model_of(memory_models.small("llama, tied"), "float32", Training())
    return execution_options_of(model, base, settings, Training(optimizer=optimizer), Memory(0, host_bytes=host))


def test_on_a_cpu_states_have_one_place_and_torch_two_implementations_at_most() -> None:
    assert executions("cpu") == (ExecutionOptions(False, "fused"), ExecutionOptions(True, "fused"))
    assert executions("cpu", "adamw_torch") == (ExecutionOptions(False, "for-loop"), ExecutionOptions(True, "for-loop"))
    assert executions("cpu", "adafactor") == (ExecutionOptions(), ExecutionOptions(True))


def test_on_a_gpu_states_may_live_with_the_host_where_it_has_room_for_them() -> None:
    assert {execution.states for execution in executions()} == {"device", "host"}
    assert {execution.implementation for execution in executions(optimizer="adamw_torch")} == {"foreach", "for-loop"}
    assert {execution.states for execution in executions(host=10**6)} == {"device"}
    assert {execution.states for execution in executions(host=10**12)} == {"device", "host"}
    assert {execution.states for execution in executions(optimizer="adafactor")} == {"device"}
    assert {execution.states for execution in executions(optimizer="sgd")} == {"device"}  # it has none


def test_what_was_asked_for_is_the_only_way() -> None:
    asked = {"recomputed_operations": "cheap", "optimizer_implementation": "foreach", "optimizer_states": "host"}
    assert executions(**asked) == (ExecutionOptions(True, "foreach", "host"),)
    assert not any(execution.recomputes_cheap for execution in executions(gradient_checkpointing=True))
    assert not any(execution.recomputes_cheap for execution in executions(recomputed_operations="all"))
    assert not any(execution.recomputes_cheap for execution in executions(compile_backend="inductor"))


def test_a_way_becomes_a_plan_and_whole_layers_leave_nothing_cheap() -> None:
    model = meta_model_of(memory_models.small("llama, tied"), "float32", Training())
    shape = Shape(100, 200, 0.7, Batch(200, 150, 80))
    estimates = MemoryEstimates(model, plan(), shape, Training(), Memory(0))
    some = estimates.plan_of(Setting(200, 2, 256, ExecutionOptions(True, "fused", "host")), 4)
    assert (some.gradient_checkpointing, some.recomputed_layers, some.recomputes_cheap) == (True, 2, True)
    assert (some.optimizer_implementation, some.optimizer_states) == ("fused", "host")
    none = estimates.plan_of(Setting(200, 0, 256, ExecutionOptions(True)), 4)
    assert (none.gradient_checkpointing, none.recomputed_layers, none.recomputes_cheap) == (True, 0, True)
    every = estimates.plan_of(Setting(200, 4, 256, ExecutionOptions(True)), 4)
    assert (every.gradient_checkpointing, every.recomputed_layers, every.recomputes_cheap) == (True, None, False)
    one, other = (estimates.prediction(Setting(200, 4, 256, ExecutionOptions(cheap)), 4) for cheap in (False, True))
    assert one is other
    assert estimates.num_simulated == 1


def test_some_layers_recomputed_whole_and_the_others_cheaply_lie_between() -> None:
    model = meta_model_of(memory_models.small("llama, tied"), "float32", Training())
    peaks = [
        max(one.components[Component.ACTIVATIONS] for one in simulate_model(model, taken, WORK, Training()).timeline)
        for taken in (plan(True), plan(True, recomputed_layers=2, recomputes_cheap=True), plan("cheap"), plan(False))
    ]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 4
    assert recomputation("cheap")["recomputes_cheap"]


# --- time ------------------------------------------------------------------------------------------------------------

TABLE = Sizes(LAYERS, 20_060_000, 28_975_104, 49_000_000, 49_000_000, 576)


def seconds(recomputed_layers: int = 0, *, state_bytes: int = 0, **changes: Any) -> float:
    taken = Plan(Layout.FLAT_DOCUMENTS, 1_024, True, 1_024, "sdpa", "float32", "float32", 1, "cpu",
                 recomputed_layers=recomputed_layers, **changes)  # fmt: skip
    rate = rates.measured(1.6e11, CPU, "float32")
    return step_seconds(TABLE, Batch(1_024, 1_024, 230), rate, taken, state_bytes=state_bytes)


def test_what_is_cheap_costs_a_percent_and_whole_layers_many() -> None:
    assert 1.003 < seconds(recomputes_cheap=True) / seconds() < 1.03  # measured: 1.007
    assert seconds(recomputed_layers=LAYERS) > 1.07 * seconds()  # measured: 1.092
    assert seconds(recomputed_layers=LAYERS, recomputes_cheap=True) == seconds(recomputed_layers=LAYERS)


def test_streamed_states_cost_their_way_to_the_device_and_back() -> None:
    card = rates.card("H100")
    rate = rates.listed(card, "bfloat16")
    assert rate.host_bytes_per_second == card.host_bytes_per_second > rates.card("T4").host_bytes_per_second
    slower = seconds(state_bytes=10**9, optimizer_states="host") - seconds(state_bytes=10**9)
    assert slower == pytest.approx(2 * 10**9 / rates.measured(1e11, CPU, "float32").host_bytes_per_second)
    assert seconds(optimizer_implementation="foreach") > seconds(optimizer_implementation="fused") == seconds()


def test_an_implementation_that_there_is_not_is_an_error() -> None:
    assert registry.implementations("adagrad", "cuda") == ("foreach", "for-loop")
    assert registry.implementations("lion_8bit", "cuda") == ()
    with pytest.raises(ConfigurationError, match="optim='madgrad'"):
        optimizers.maker("madgrad", is_cuda=False, implementation="fused")
