"""What consumes memory: the same step with one setting changed at a time, simulated.

In: a configuration, a plan, a micro-batch and what is trained.  Out: a prediction for each setting that a reader may
turn.  What it keeps true: everything but the named setting is as in the step that it is compared with; nothing is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sartor.memory.failure import reason_of
from sartor.memory.prediction import Component, Prediction
from sartor.memory.simulate import Training, Work, simulate
from sartor.records import Plan

RANK = 16
"""Of the adapter that is compared with full training; peft's and trl's customary one."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What is simulated."""

    plan: Plan
    work: Work
    training: Training

    def but(self, **changes: Any) -> _Step:
        """The same step with other values of some fields, each of the record that has it."""
        records = {}
        for name in self.__slots__:
            record = getattr(self, name)
            own = {field.name for field in dataclasses.fields(record)}
            records[name] = dataclasses.replace(record, **{key: changes[key] for key in own & changes.keys()})
        return _Step(**records)

    def scaled(self, change: Callable[[list[int]], list[int]]) -> _Step:
        """With other documents, and the same share of targets."""
        lengths = change(list(self.work.document_lengths))
        targets = self.work.num_targets * sum(lengths) // sum(self.work.document_lengths)
        return self.but(document_lengths=tuple(lengths), num_targets=targets)

    def rounded(self, rounds: bool) -> _Step:
        """With bfloat16 weights, or with float32 masters."""
        settings = dataclasses.replace(self.training.settings, stochastic_rounding=rounds)
        dtype = "bfloat16" if rounds else "float32"
        return self.but(stochastic_rounding=rounds, parameter_dtype=dtype, settings=settings)


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
    for label, step in _variants(_Step(plan, work, training)):
        entry: dict[str, Any] = {"label": label}
        try:
            entry |= _numbers(simulate(config, step.plan, step.work, step.training))
        except Exception as error:  # an architecture may refuse bfloat16, or an adapter: the others are still of use
            entry["reason"] = reason_of(error)
        found.append(entry)
    return found


def _variants(step: _Step) -> Iterator[tuple[str, _Step]]:
    plan, work, training = step.plan, step.work, step.training
    yield "as it is", step
    other = not plan.gradient_checkpointing
    changed = step.but(gradient_checkpointing=other, recomputed_layers=None, recomputes_cheap=False)
    yield f"gradient_checkpointing={other}", changed
    if not plan.recomputes_cheap:
        cheap = step.but(gradient_checkpointing=True, recomputed_layers=0, recomputes_cheap=True)
        yield "cheap operations recomputed", cheap
    yield "documents half as long", step.scaled(lambda lengths: [max(2, length // 2) for length in lengths])
    if len(work.document_lengths) > 1:
        half = len(work.document_lengths) // 2
        yield "half as many documents at once", step.scaled(lambda lengths: lengths[:half])
    yield "twice as many documents at once", step.scaled(lambda lengths: lengths * 2)
    if not plan.stochastic_rounding:  # which is in bfloat16 and no other
        compute = "float32" if plan.compute_dtype == "bfloat16" else "bfloat16"
        yield f"computed in {compute}", step.but(compute_dtype=compute)
    if training.lora is not None:
        yield "all weights trained", step.but(lora=None)
        return
    yield f"LoRA, rank {RANK}", step.but(lora=_adapter())
    if plan.stochastic_rounding:
        yield "float32 masters", step.rounded(False)
        return
    yield "8-bit optimizer states", step.but(make_optimizer=None, optimizer="adamw_bnb_8bit")
    if plan.compute_dtype == "bfloat16":
        yield "bf16 weights with stochastic rounding", step.rounded(True)


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
