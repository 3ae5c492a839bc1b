"""The plan of a run: searched for by simulation before the first step, or by rules of thumb where that is not worth it.

In: a session whose parameters have the dtypes of a training, and its data.  Out: a frozen `Plan`, its reasons, and what
a run says about its memory.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from sartor.device import kind_of
from sartor.engine.precision import Masters
from sartor.engine.traits import ModelTraits, base_model, is_adapter
from sartor.memory import meta_model, plan_text, rates
from sartor.memory.decide import Decider, Decision, recomputation
from sartor.memory.estimates import Memory, MemoryEstimates, Shape, pass_bytes
from sartor.memory.failure import reason_of
from sartor.memory.plan import ACTIVATION_VALUES_PER_HIDDEN, most_chunk_rows, most_tokens, with_optimizer
from sartor.memory.proposals import with_proposals
from sartor.memory.search import ExecutionOptions, SearchSpace, search_space
from sartor.memory.simulate import Training
from sartor.memory.speed import Batch, sizes_of
from sartor.optim import registry
from sartor.records import PLAN_CHOICES, DataSummary, EngineSettings, Plan
from sartor.run.data_loader import TrainDataLoader
from sartor.run.device_batch import parts
from sartor.run.sampling import asked
from sartor.run.session import Session
from sartor.run.settings import RunSettings

TINY_BYTES = 256 << 20
"""A run that needs less by a rule of thumb, and less than a quarter of what is free, is not simulated: it would take
longer than it is worth."""
ASSUMED_CPU_RATE = 2e10
NEIGHBOURS = 10
"""Simulations that comparing takes, at most."""
NEIGHBOUR_SHARE = 0.005
"""Of a run's time that it may take; `sartor plan` always compares."""


def planned(
    session: Session,
    base: Plan,
    traits: ModelTraits,
    data_loader: TrainDataLoader,
    *,
    available_bytes: int,
    matrix_rate: Callable[[], float | None],
) -> Plan:
    """The plan to take; what it foresees is said.

    Args:
        session: about to train.
        base: by rules of thumb; it holds where nothing better is found.
        traits: of the model.
        data_loader: the data.
        available_bytes: free memory of the device.
        matrix_rate: measures the device's rate.
    """
    estimate = rough_bytes(session.model, traits, base)
    if estimate < min(TINY_BYTES, available_bytes // 4):
        session.say(
            f"memory: under {plan_text.gigabytes(max(estimate, 1e6))} by a rule of thumb, of "
            f"{plan_text.gigabytes(available_bytes)} free"
        )
        return base
    against = _reason_against(session.settings)
    if against is not None:
        session.say(f"memory: not simulated, since {against}; the plan follows rules of thumb")
        return base
    model, settings = session.model, session.settings
    try:
        training = training_of(model, session.masters, session.tokenizer, settings)
        shape = shape_of(settings, data_loader, session.data.summaries.get("train"))
        decision, plan = _searched(
            model, settings, base, traits, training, shape, available_bytes=available_bytes, matrix_rate=matrix_rate
        )
        for line in plan_text.run_lines(decision, traits.num_layers):
            session.say(line)
        return plan
    except Exception as error:  # a run must not fail because its memory cannot be foreseen
        session.say(f"memory: this model cannot be simulated ({reason_of(error)}); the plan follows rules of thumb")
        return base


def rough_bytes(model: Any, traits: ModelTraits, plan: Plan) -> int:
    """What a step takes by a rule of thumb: weights, gradients and two states; activations; two chunks of logits."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    layers = plan.micro_batch_tokens * traits.num_layers * traits.hidden_size * ACTIVATION_VALUES_PER_HIDDEN * 4
    logits = 2 * 4 * plan.loss_chunk_rows * traits.vocabulary_size
    return sum(parameter.nbytes for parameter in parameters) + 12 * trained + layers + logits


def _reason_against(settings: RunSettings) -> str | None:
    if settings.own_loss:
        return "an own loss or data_collator decides what goes through the model"
    if settings.optimizer is None:
        return "what the states of an own optimizer need is not known"
    return None


def _searched(
    trained: Any,
    run: RunSettings,
    base: Plan,
    traits: ModelTraits,
    training: Training,
    shape: Shape,
    *,
    available_bytes: int,
    matrix_rate: Callable[[], float | None],
) -> tuple[Decision, Plan]:
    """What to take, and the plan with it; see `planned`."""
    settings, model = run.engine, meta_model.imitate(trained)
    shape = replace(shape, document_limit=traits.rope_switch_tokens)
    kind = kind_of(base.device)
    host_bytes = None if kind.is_host else int(psutil.virtual_memory().available)
    memory = Memory(available_bytes, _held_bytes(trained), host_bytes=host_bytes)
    executions = execution_options_of(trained, base, settings, training, memory)
    free = search_space_of(trained, traits, settings, base, shape, executions)
    sizes = sizes_of(traits, trained)
    rate = matrix_rate()
    speed = (
        rates.Rates(ASSUMED_CPU_RATE, kind.bytes_per_second, "assumed: this processor has no such products")
        if rate is None
        else rates.measured(rate, kind, base.compute_dtype)
    )
    estimates = MemoryEstimates(model, base, shape, training, memory)
    decider = Decider(estimates, free, sizes, speed)
    start = time.perf_counter()
    decision = decider.decide(compares=False)
    each = (time.perf_counter() - start) / max(1, decision.num_simulated)
    decision = with_unasked(decision, decider, estimates, trained, traits, settings)
    if decision.fits and NEIGHBOURS * each <= NEIGHBOUR_SHARE * (decision.run_seconds or 0.0):
        decision = replace(decision, neighbours=decider.neighbours(decision.chosen.setting))
    decision = with_proposals(decision, base_model(trained).config, estimates, sizes)
    size, steps, _ = parts(run, shape.longest_tokens, decision.chosen.setting.micro_batch_tokens)
    decision = replace(decision, device_batch=(size, steps))
    forecast = plan_text.as_json(decision, num_layers=traits.num_layers, optimizer=training.optimizer)
    return decision, replace(plan_with(estimates, decision, settings, traits.num_layers), forecast=forecast)


def with_unasked(
    decision: Decision,
    decider: Decider,
    estimates: MemoryEstimates,
    model: Any,
    traits: ModelTraits,
    settings: EngineSettings,
) -> Decision:
    """The decision; where the user chose settings of memory, with what would be taken had they not.

    Args:
        decision: about a training.
        decider: that made it.
        estimates: of the training.
        model: that is trained, perhaps without memory.
        traits: of it.
        settings: what the user has chosen.
    """
    if all(getattr(settings, choice) is None for choice in PLAN_CHOICES):
        return decision
    cleared: dict[str, Any] = dict.fromkeys(PLAN_CHOICES)
    nothing = replace(settings, **cleared)
    rows = most_chunk_rows(traits.vocabulary_size)
    base = with_optimizer(replace(estimates.plan, loss_chunk_rows=rows), nothing, estimates.training.optimizer)
    executions = execution_options_of(model, base, nothing, estimates.training, estimates.memory)
    free = search_space_of(model, traits, nothing, base, estimates.shape, executions)
    return replace(decision, unasked=decider.unasked(free, decision.chosen.setting))


def plan_with(estimates: MemoryEstimates, decision: Decision, settings: EngineSettings, num_layers: int) -> Plan:
    """The decision as a plan, with its reasons and what it foresees."""
    setting, plan = decision.chosen.setting, estimates.plan
    needs = (
        f"a step needs {plan_text.gigabytes(decision.chosen.needed_bytes)} of the "
        f"{plan_text.gigabytes(decision.available_bytes)} free"
    )
    reasons = dict(plan.reasons)
    if settings.micro_batch_tokens is None:
        reasons["micro_batch_tokens"] = (
            "the fewest that are about as fast as any that fit" if decision.fits else "the fewest: nothing fits"
        )
    if settings.gradient_checkpointing is None:
        cheap = setting.execution.recomputes_cheap
        what = recomputation(setting.recomputed_layers, num_layers, recomputes_cheap=cheap)
        reasons["gradient_checkpointing"] = f"{what}: {needs}"
    if settings.loss_chunk_rows is None and setting.loss_chunk_rows != plan.loss_chunk_rows:
        reasons["loss_chunk_rows"] = "fewer, so that it fits"
    if setting.execution.states != plan.optimizer_states:
        reasons["optimizer_states"] = f"on the {setting.execution.states}, so that it fits"
    if setting.execution.implementation != plan.optimizer_implementation:
        reasons["optimizer_implementation"] = f"{setting.execution.implementation}, so that it fits"
    work = estimates.shape.work(setting.micro_batch_tokens, plan.layout)
    return replace(
        estimates.plan_of(setting, num_layers),
        reasons=reasons,
        predicted_bytes={**dict(plan_text.components(decision)), "peak": decision.prediction.peak_bytes},
        pass_bytes=pass_bytes(decision.prediction),
        pass_tokens=sum(work.document_lengths),
    )


def training_of(model: Any, masters: Masters, tokenizer: Any, settings: RunSettings) -> Training:
    """What is trained and how, for the simulation."""
    arrival = sorted(str(dtype).removeprefix("torch.") for dtype in masters.arrival_dtypes)
    assert settings.optimizer is not None
    return Training(
        arrival_dtype=arrival[0] if arrival else "float32",
        optimizer=settings.optimizer,
        optimizer_options=registry.options_of(settings.optimizer, settings.optim_args),
        rehearses=settings.rehearse is not False,
        lora=model.peft_config[model.active_adapter] if is_adapter(model) else None,
        settings=settings.engine,
        saves=settings.saves,
        asked=asked(tokenizer, settings.sample_prompts, settings.sample_max_new_tokens),
    )


def shape_of(settings: RunSettings, data_loader: TrainDataLoader, summary: DataSummary | None) -> Shape:
    """The data as far as memory is concerned; of a stream, rows of `max_length` with every token trained.

    Args:
        settings: of the training.
        data_loader: the data.
        summary: of their preparation; None: every token is taken to be trained.
    """
    if data_loader.examples is None or not len(data_loader.examples):
        longest = settings.data.max_length or 1_024
        most = settings.examples_per_step * longest
        steps = settings.max_steps if settings.max_steps > 0 else None
        return Shape(longest, most, 1.0, Batch(most, most, longest), steps)
    longest = max(1, data_loader.longest_document())
    return shape_of_examples(data_loader.examples.lengths, longest, summary, settings)


def shape_of_examples(lengths: Any, longest: int, summary: DataSummary | None, settings: RunSettings) -> Shape:
    """The same of prepared rows.

    Args:
        lengths: tokens of each row, at least one.
        longest: tokens of the longest document.
        summary: of their preparation; None: every token is taken to be trained.
        settings: of the training.
    """
    size = settings.examples_per_step
    share = 1.0 if summary is None or not summary.num_tokens else summary.num_targets / summary.num_tokens
    epochs = math.ceil(settings.num_train_epochs * math.ceil(len(lengths) / size))
    num_steps = settings.max_steps if settings.max_steps > 0 else epochs
    return shape_from(lengths, longest, share, size, num_steps)


def shape_from(lengths: Any, longest: int, target_share: float, batch_size: int, num_steps: int | None) -> Shape:
    """From the rows' lengths.

    Args:
        lengths: tokens of each row, at least one.
        longest: tokens of the longest document.
        target_share: of all tokens that are trained; a micro-batch is allowed a quarter more.
        batch_size: rows of an optimizer batch.
        num_steps: of the run.
    """
    mean = float(np.mean(lengths))
    largest = int(np.sort(lengths)[-batch_size:].sum())
    documents = np.minimum(lengths, longest)
    square = float((documents.astype(np.float64) ** 2).sum() / max(1.0, float(documents.sum())))
    tokens = mean * min(batch_size, len(lengths))
    batch = Batch(tokens, tokens * target_share, square)
    return Shape(longest, max(longest, largest), min(1.0, 1.25 * target_share), batch, num_steps)


HOST_SHARE = 0.6
"""Of a GPU's host's free memory that optimizer states may take; pinned memory comes in powers of two."""


def execution_options_of(
    model: Any, base: Plan, settings: EngineSettings, training: Training, memory: Memory
) -> tuple[ExecutionOptions, ...]:
    """How the same may be computed, the fastest first: what the user, the architecture and the optimizer leave open."""
    cheap: tuple[bool, ...] = (False, True)
    if settings.recomputed_operations is not None:
        cheap = (settings.recomputed_operations == "cheap",)
    elif (
        settings.gradient_checkpointing is not None
        or base.compile_backend is not None  # a program's operations are not seen one by one
        or not base_model(model).supports_gradient_checkpointing
    ):
        cheap = (False,)
    name, kind = training.optimizer, kind_of(base.device)
    implementations: tuple[str | None, ...] = (base.optimizer_implementation,)
    if settings.optimizer_implementation is None:
        implementations = registry.implementations(name, kind.name) or implementations
    places: tuple[str, ...] = (base.optimizer_states,)
    each = registry.state_bytes(name, training.optimizer_options)
    if settings.optimizer_states is None and not kind.is_host and each:
        needed = each * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if memory.host_bytes is None or needed <= HOST_SHARE * memory.host_bytes:
            places = ("device", "host")
    return tuple(ExecutionOptions(*execution) for execution in itertools.product(cheap, implementations, places))


def search_space_of(
    model: Any,
    traits: ModelTraits,
    settings: EngineSettings,
    base: Plan,
    shape: Shape,
    executions: tuple[ExecutionOptions, ...] = (ExecutionOptions(),),
) -> SearchSpace:
    """What the user and the architecture leave open.

    Args:
        model: that is trained, perhaps without memory.
        traits: of it.
        settings: what the user has chosen.
        base: the plan by rules of thumb.
        shape: of the data.
        executions: see `execution_options_of`.
    """
    inner = base_model(model)
    can_recompute = bool(inner.supports_gradient_checkpointing)
    layers: int | None = None
    if settings.recomputed_operations == "cheap":
        layers = 0
    elif settings.gradient_checkpointing is not None:
        layers = traits.num_layers if settings.gradient_checkpointing else 0
    elif not can_recompute:
        layers = 0
    most = most_tokens(kind_of(base.device), base.compute_dtype)
    free = search_space(
        tokens=settings.micro_batch_tokens,
        layers=layers,
        rows=settings.loss_chunk_rows,
        smallest_tokens=shape.longest_tokens,
        largest_tokens=min(most, max(shape.longest_tokens, shape.largest_batch_tokens)),
        num_layers=traits.num_layers,
        largest_rows=base.loss_chunk_rows,
        executions=executions,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer

    if len(free.layers) > 1 and not any(isinstance(part, GradientCheckpointingLayer) for part in inner.modules()):
        return replace(free, layers=(0, traits.num_layers))
    return free


def _held_bytes(model: Any) -> int:
    """Of parameters and buffers, which are allocated already."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())
