"""Setting up the engine for a trainer: masters, layout, plan, and putting everything back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sartor.engine.layout import choose_layout
from sartor.engine.precision import choose_compute_dtype
from sartor.engine.step import Engine
from sartor.engine.traits import ModelTraits, read_traits
from sartor.errors import ConfigurationError
from sartor.memory.device import available_bytes
from sartor.memory.plan import default_plan, write_plan
from sartor.records import Plan
from sartor.trainer import saving

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer


@contextmanager
def engine_for(trainer: SFTTrainer, *, longest_tokens: int, trains: bool) -> Iterator[Engine]:
    """The trainer's model under an engine, for as long as the block lasts.

    Within `train()`, evaluation gets the engine that is there.  Else parameters are widened first: as masters for
    training, for the time being for evaluation; and at the end the caller's model is back in the dtype it arrived in.

    Args:
        longest_tokens: of all documents that will go through.
        trains: whether parameters will be updated.
    """
    if trainer.engine is not None:
        yield trainer.engine
        return
    device = next(trainer.model.parameters()).device
    settings = trainer.settings.engine
    compute_dtype, reason = choose_compute_dtype(
        device, bf16=settings.bf16, fp16=settings.fp16, strict=settings.strict_precision
    )
    if trains:
        trainer.masters.widen(compute_dtype)
    try:
        with trainer.masters.widened_for_now(compute_dtype):
            traits = read_traits(trainer.model)
            plan = _plan(trainer, traits, device, compute_dtype, reason, longest_tokens)
            engine = Engine(trainer.model, traits, plan, settings)
            engine.check_head()
            engine.balance_coefficient = (
                balance_coefficient(trainer.args.router_aux_loss_coef, traits) if trains else 0.0
            )
            with engine.running():
                trainer.engine = engine
                yield engine
    finally:
        trainer.engine = None
        trainer.masters.round()


def _plan(
    trainer: SFTTrainer,
    traits: ModelTraits,
    device: torch.device,
    compute_dtype: torch.dtype,
    reason: str,
    longest_tokens: int,
) -> Plan:
    trained = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if p.requires_grad}
    return default_plan(
        traits,
        trainer.settings.engine,
        choose_layout(trainer.model, traits),
        device=device,
        parameter_dtype=" and ".join(sorted(trained)),
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        compute_reason=reason,
        longest_tokens=longest_tokens,
        available_bytes=available_bytes(device),
        num_threads=torch.get_num_threads(),
    )


def balance_coefficient(asked: float | None, traits: ModelTraits) -> float:
    """Weight of a mixture of experts' load-balancing loss: the user's, else the architecture's own.

    Raises:
        ConfigurationError: it is asked for, and the model has no such loss.
    """
    if asked and traits.balance_loss is None:
        raise ConfigurationError(
            f"router_aux_loss_coef={asked} is set, but a {traits.model_type} model has no load-balancing loss: "
            "leave it out."
        )
    if traits.balance_loss is None:
        return 0.0
    return traits.router_aux_loss_coef if asked is None else float(asked)


def announce(trainer: SFTTrainer, plan: Plan) -> None:
    """Write the plan beside the run, and say it in a few lines."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(plan, folder / saving.PLAN_NAME)
    trainer.say(
        f"computing in {plan.compute_dtype} on {plan.device}, parameters in {plan.parameter_dtype}; "
        f"{plan.layout.value}; up to "
        f"{plan.micro_batch_tokens:,} tokens at once; gradient checkpointing "
        f"{'on' if plan.gradient_checkpointing else 'off'}"
    )
    for field in ("compute_dtype", "layout"):
        if field in plan.reasons:
            trainer.say(f"{field}: {plan.reasons[field]}")


def find_labels(dataset: Any) -> bool:
    """Whether a prepared data set has labels."""
    return "labels" in (dataset.column_names or ())
