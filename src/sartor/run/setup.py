"""Setting up the engine for a session: masters, layout, plan, and putting everything back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sartor.device import fast_dtypes, kind_of
from sartor.engine.flops import measured_matrix_rate
from sartor.engine.layout import choose_layout
from sartor.engine.precision import choose_compute_dtype, require_bf16
from sartor.engine.step import Engine
from sartor.engine.traits import ModelTraits, read_traits
from sartor.errors import ConfigurationError
from sartor.memory.limits import available_bytes
from sartor.memory.plan import default_plan, with_optimizer, write_plan
from sartor.records import Plan
from sartor.run import device_batch, policies, saving
from sartor.run.data_loader import TrainDataLoader
from sartor.run.planning import planned
from sartor.run.preparation import Preparation
from sartor.run.session import Session
from sartor.run.settings import RunSettings
from sartor.run.steps import StepCounter


@contextmanager
def engine_for(
    session: Session,
    *,
    longest_tokens: Callable[[], int],
    trains: bool,
    frozen: Plan | None = None,
    data_loader: TrainDataLoader | None = None,
) -> Iterator[Engine]:
    """The session's model under an engine, for as long as the block lasts.

    Within a training, evaluation gets the engine that is there.  Else parameters are widened first: as masters for
    training, for the time being for evaluation; and at the end the caller's model is back in the dtype it arrived in.

    Args:
        session: whose model and settings.
        longest_tokens: gives the length of the longest document that will go through; asked only where an engine is
            made.
        trains: whether parameters will be updated.
        frozen: the plan of the checkpoint that training goes on from; whatever there is to choose now, it holds.
        data_loader: the data that will be trained on, for a plan that predicts what they need.
    """
    if session.engine is not None:
        yield session.engine
        return

    def freeze(plan: Plan) -> None:
        session.plan = plan
        policies.freeze(plan, session.folder, session.say)

    model, masters, settings, device = session.model, session.masters, session.settings, session.device
    compute_dtype, reason = _compute_dtype(settings, device, trains)
    if frozen is not None:
        compute_dtype = getattr(torch, frozen.compute_dtype)
    rounds = trains and settings.engine.stochastic_rounding
    if rounds:
        require_bf16(compute_dtype, reason)
    if trains:
        masters.widen(compute_dtype, rounds=rounds)
        session.steps = StepCounter()
    try:
        with masters.widened_for_now(compute_dtype):
            traits = read_traits(model)
            longest = longest_tokens()
            plan = frozen or _plan(model, settings, traits, device, compute_dtype, reason, longest)
            if plan.stochastic_rounding != rounds and trains:  # a change that was accepted
                plan = replace(plan, stochastic_rounding=rounds, parameter_dtype=_trained_dtypes(model))
            if frozen is None and data_loader is not None:
                plan = planned(
                    session,
                    plan,
                    traits,
                    data_loader,
                    available_bytes=available_bytes(device),
                    matrix_rate=lambda: matrix_rate(device, compute_dtype),
                )
                session.settings, plan = device_batch.split(settings, plan, longest)
                data_loader.settings = session.settings
            engine = Engine(model, traits, plan, settings.engine)
            engine.check_head()
            engine.check_lengths(longest)
            if trains:
                engine.balance_coefficient = _balance_coefficient(settings, traits, session.say)
            steps = session.steps if trains else StepCounter()
            with engine.running():
                session.recovery = policies.recovery_for(engine, steps, session.say, freeze if trains else None)
                yield engine
    finally:
        session.recovery = None
        masters.round()


def _compute_dtype(run: RunSettings, device: torch.device, trains: bool) -> tuple[torch.dtype, str]:
    """What is computed in; an evaluation outside of training follows `bf16_full_eval` and `fp16_full_eval`."""
    settings = run.engine
    bf16, fp16 = settings.bf16, settings.fp16
    if not trains and (run.bf16_full_eval or run.fp16_full_eval):
        bf16, fp16 = run.bf16_full_eval, run.fp16_full_eval
    return choose_compute_dtype(device, bf16=bf16, fp16=fp16, strict=settings.strict_precision)


def _plan(
    model: Any,
    settings: RunSettings,
    traits: ModelTraits,
    device: torch.device,
    compute_dtype: torch.dtype,
    reason: str,
    longest_tokens: int,
) -> Plan:
    plan = default_plan(
        traits,
        settings.engine,
        choose_layout(model, traits),
        device=device,
        parameter_dtype=_trained_dtypes(model),
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        compute_reason=reason,
        longest_tokens=longest_tokens,
        available_bytes=available_bytes(device),
        num_threads=torch.get_num_threads(),
    )
    return with_optimizer(plan, settings.engine, settings.optimizer)


def _trained_dtypes(model: Any) -> str:
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    return " and ".join(sorted(found))


def _balance_coefficient(settings: RunSettings, traits: ModelTraits, say: Callable[[str], None]) -> float:
    """Weight of a mixture of experts' load-balancing loss: the user's, else the architecture's own.

    Raises:
        ConfigurationError: it is asked for, and the model has no such loss, or an own loss stands in its way.
    """
    asked = settings.router_aux_loss_coef
    if asked and traits.balance_loss is None:
        raise ConfigurationError(
            f"router_aux_loss_coef={asked} is set, but a {traits.model_type} model has no load-balancing loss: leave "
            "it out."
        )
    if traits.balance_loss is None:
        return 0.0
    coefficient = traits.router_aux_loss_coef if asked is None else float(asked)
    if coefficient and settings.own_loss:
        if asked is not None:
            raise ConfigurationError(
                f"router_aux_loss_coef={asked} is set, and so is an own loss or data_collator, which decides alone on "
                "what is trained: add the load-balancing loss in compute_loss, and leave router_aux_loss_coef out."
            )
        say("the load-balancing loss of the experts is left out: an own loss or data_collator decides on it.")
        return 0.0
    return coefficient


@lru_cache(maxsize=4)
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of this device in this dtype; None where measuring would take longer than it is worth."""
    if kind_of(device).is_host and dtype not in fast_dtypes(device):
        return None  # without instructions for it a single product takes seconds
    return measured_matrix_rate(device, dtype)


def _recomputation(plan: Plan) -> str:
    if plan.gradient_checkpointing and plan.recomputes_cheap and plan.recomputed_layers is not None:
        whole = f" and of all of the first {plan.recomputed_layers} layers" if plan.recomputed_layers else ""
        return f"of cheap operations{whole}"
    if plan.gradient_checkpointing and plan.recomputed_layers is not None:
        return f"of the first {plan.recomputed_layers} layers"
    return "on" if plan.gradient_checkpointing else "off"


def announce(folder: Path, plan: Plan, data: Preparation, say: Callable[[str], None]) -> None:
    """Write the plan and what is known of the data beside the run, and say the plan in a few lines.

    Raises:
        RunFolderError: the run folder cannot be written.
    """
    with saving.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(plan, folder / saving.PLAN_NAME)
    saving.write_json(folder / saving.DATA_NAME, data.as_json())
    say(
        f"computing in {plan.compute_dtype} on {plan.device}, parameters in {plan.parameter_dtype}"
        f"{', rounded stochastically' if plan.stochastic_rounding else ''}; "
        f"{plan.layout.value}; up to {plan.micro_batch_tokens:,} tokens at once; gradient checkpointing "
        f"{_recomputation(plan)}"
        + (", optimizer states in the host's memory" if plan.optimizer_states == "host" else "")
        + (f"; layers compiled by {plan.compile_backend}" if plan.compile_backend else "")
    )
    for field in ("per_device_train_batch_size", "compute_dtype", "layout"):
        if field in plan.reasons:
            say(f"{field}: {plan.reasons[field]}")


def count_streams(folder: Path, data: Preparation) -> None:
    """Say what was read of streams, and write it beside the run, where nothing was known before.

    Raises:
        RunFolderError: the run folder cannot be written.
    """
    if data.count_streams():
        saving.write_json(folder / saving.DATA_NAME, data.as_json())
