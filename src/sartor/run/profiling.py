"""A look at a training's memory without training.

In: a session.  Out: what `memory.json` holds (predicted, measured, by setting).  What it keeps true: weights and random
generators stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from sartor.device import kind_of
from sartor.engine.traits import base_model, is_adapter, read_traits
from sartor.errors import ConfigurationError
from sartor.memory import meta_model, trace
from sartor.memory.consumers import what_consumes
from sartor.memory.failure import reason_of
from sartor.memory.heap import retaining
from sartor.memory.prediction import MakeOptimizer
from sartor.memory.simulate import Training, Work, simulate_model
from sartor.optim.registry import set_implementation
from sartor.records import DataSummary, EngineSettings, Plan
from sartor.run import rehearsal
from sartor.run.data_loader import TrainDataLoader
from sartor.run.planning import shape_of
from sartor.run.policies import freeze
from sartor.run.session import Session
from sartor.run.settings import RunSettings
from sartor.run.setup import engine_for
from sartor.run.stepper import Updater


def profile(
    session: Session,
    data_loader: TrainDataLoader,
    make_optimizer: Callable[[], torch.optim.Optimizer],
    num_steps: Callable[[], int],
) -> None:
    """Rehearse the worst micro-batches of a training that is set up; `session.memory` is then what `memory.json` holds.

    Args:
        session: of the training.
        data_loader: its data.
        make_optimizer: makes its optimizer, once parameters have the dtypes of a training.
        num_steps: counts its optimizer steps.

    Raises:
        ConfigurationError: there is nothing that could be rehearsed; says why.
        OutOfMemoryError: not even one document goes through.
    """
    with ExitStack() as stack:
        stack.enter_context(retaining(wanted=kind_of(session.device).is_host))
        engine = stack.enter_context(
            engine_for(session, longest_tokens=data_loader.longest_document, trains=True, data_loader=data_loader)
        )
        stack.callback(session.model.zero_grad, set_to_none=True)
        session.plan = engine.plan
        optimizer = make_optimizer()
        set_implementation(optimizer, engine.plan.optimizer_implementation)
        updater = Updater(optimizer, None, engine, engine.settings.max_grad_norm, False, recovery=session.recovery)
        session.memory, session.plan = rehearsal.rehearse_now(
            session.settings, data_loader, updater, num_steps(), session.say
        )
        freeze(session.plan, session.folder, session.say)


def predicted(
    trained: Any,
    plan: Plan,
    settings: RunSettings,
    data_loader: TrainDataLoader,
    summary: DataSummary | None,
    make_optimizer: MakeOptimizer,
) -> dict[str, Any]:
    """What `memory.json` holds where nothing was rehearsed: a step's memory by simulation, and nothing measured.

    Args:
        trained: the model.
        plan: of the training.
        settings: of the training.
        data_loader: its data.
        summary: of their preparation, where that is known.
        make_optimizer: makes its optimizer.

    Raises:
        ConfigurationError: this model cannot be simulated.
    """
    try:
        model = meta_model.imitate(trained)
        meta_model.widen(model, getattr(torch, plan.compute_dtype), rounds=plan.stochastic_rounding)
        traits = read_traits(model)
        shape = shape_of(settings, data_loader, summary)
        work = replace(shape, document_limit=traits.rope_switch_tokens).work(plan.micro_batch_tokens, plan.layout)
        training = training_like(trained, settings.engine, make_optimizer)
        prediction = simulate_model(model, plan, work, training)
        return trace.as_json(prediction, [], rehearsal.about(model, traits, plan, work))
    except Exception as error:
        raise ConfigurationError(
            f"nothing was rehearsed, and this model cannot be simulated: {reason_of(error)}"
        ) from error


def with_settings(
    memory: dict[str, Any], model: Any, plan: Plan | None, training: Callable[[], Training]
) -> dict[str, Any]:
    """The same, with what each setting would change; simulated once, which takes a few seconds.

    Args:
        memory: what `memory.json` holds.
        model: that is trained.
        plan: of the training; None: nothing is known.
        training: says how it is trained; see `training_like`.
    """
    if "settings" in memory or plan is None:
        return memory
    work = Work(tuple(memory["document_lengths"]), memory["num_targets"], memory["num_micro_batches"])
    return {**memory, "settings": what_consumes(base_model(model).config, plan, work, training())}


def training_like(model: Any, settings: EngineSettings, make_optimizer: MakeOptimizer) -> Training:
    """What is trained and how, for the simulation."""
    adapters = model.peft_config if is_adapter(model) else None
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return Training(
        arrival_dtype=str(frozen[0].dtype).removeprefix("torch.") if frozen else "float32",
        make_optimizer=make_optimizer,
        lora=next(iter(adapters.values())) if adapters else None,
        settings=settings,
    )
