"""What consumes memory: the same step with one setting changed at a time, foreseen.

In: a configuration, a plan, a micro-batch and what is trained.  Out: a prediction for each setting that a reader may
turn.  What it keeps true: everything but the named setting is as in the step that it is compared with; nothing is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from sartor.memory.failure import reason_of
from sartor.memory.prediction import Component, Prediction
from sartor.memory.simulate import Training, Work, simulate
from sartor.records import Plan

RANK = 16
"""Of the adapter that is compared with full training; peft's and trl's customary one."""

_Variant = tuple[str, Plan, Work, Training]


def what_consumes(config: Any, plan: Plan, work: Work, training: Training) -> list[dict[str, Any]]:
    """For each setting: what it is called, the peak, and bytes by component; the step as it is comes first.

    A setting that cannot be simulated has a `reason` in place of numbers.

    Args:
        config: a transformers configuration of a causal language model.
        plan: how the step is executed.
        work: its largest micro-batch.
        training: what is trained.
    """
    found = []
    for label, *variant in _variants(plan, work, training):
        entry: dict[str, Any] = {"label": label}
        try:
            entry |= _numbers(simulate(config, *variant))  # type: ignore[arg-type]
        except Exception as error:  # an architecture may refuse bfloat16, or an adapter: the others are still of use
            entry["reason"] = reason_of(error)
        found.append(entry)
    return found


def _variants(plan: Plan, work: Work, training: Training) -> Iterator[_Variant]:
    yield "as it is", plan, work, training
    other = not plan.gradient_checkpointing
    yield (
        f"gradient_checkpointing={other}",
        dataclasses.replace(plan, gradient_checkpointing=other, recomputed_layers=None, recomputes_cheap=False),
        work,
        training,
    )
    if not plan.recomputes_cheap:
        cheap = dataclasses.replace(plan, gradient_checkpointing=True, recomputed_layers=0, recomputes_cheap=True)
        yield "cheap operations recomputed", cheap, work, training
    yield (
        "documents half as long",
        plan,
        _scaled(work, lambda lengths: [max(2, length // 2) for length in lengths]),
        training,
    )
    if len(work.document_lengths) > 1:
        half = len(work.document_lengths) // 2
        yield "half as many documents at once", plan, _scaled(work, lambda lengths: lengths[:half]), training
    yield "twice as many documents at once", plan, _scaled(work, lambda lengths: lengths * 2), training
    if not plan.stochastic_rounding:  # which is in bfloat16 and no other
        compute = "float32" if plan.compute_dtype == "bfloat16" else "bfloat16"
        yield f"computed in {compute}", dataclasses.replace(plan, compute_dtype=compute), work, training
    if training.lora is None:
        yield f"LoRA, rank {RANK}", plan, work, dataclasses.replace(training, lora=_adapter())
    if training.lora is None and plan.stochastic_rounding:
        yield "float32 masters", *_rounded(plan, work, training, rounds=False)
    elif training.lora is None:
        yield (
            "8-bit optimizer states",
            plan,
            work,
            dataclasses.replace(training, make_optimizer=None, optimizer="adamw_bnb_8bit"),
        )
        if plan.compute_dtype == "bfloat16":
            yield "bf16 weights with stochastic rounding", *_rounded(plan, work, training, rounds=True)
    else:
        yield "all weights trained", plan, work, dataclasses.replace(training, lora=None)


def _rounded(plan: Plan, work: Work, training: Training, *, rounds: bool) -> tuple[Plan, Work, Training]:
    """With bfloat16 weights, or with float32 masters."""
    settings = dataclasses.replace(training.settings, stochastic_rounding=rounds)
    dtype = "bfloat16" if rounds else "float32"
    return (
        dataclasses.replace(plan, stochastic_rounding=rounds, parameter_dtype=dtype),
        work,
        dataclasses.replace(training, settings=settings),
    )


def _scaled(work: Work, change: Callable[[list[int]], list[int]]) -> Work:
    """Other documents, with the same share of targets."""
    lengths = change(list(work.document_lengths))
    targets = work.num_targets * sum(lengths) // sum(work.document_lengths)
    return dataclasses.replace(work, document_lengths=tuple(lengths), num_targets=targets)


def _adapter() -> Any:
    import peft

    return peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def _numbers(prediction: Prediction) -> dict[str, Any]:
    components = prediction.components
    return {
        "peak_bytes": prediction.peak_bytes,
        "peak_at": prediction.peak.label,
        "components": {part.value: components.get(part, 0) for part in Component},
        "notes": list(prediction.notes),
    }
