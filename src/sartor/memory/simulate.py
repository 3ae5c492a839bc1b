"""The memory of one optimizer step, predicted: the engine's own step on fake tensors under a live set.

In: a configuration, a plan and the shape of a micro-batch.  Out: a `Prediction`.  What it keeps true: what runs is
`engine.step.Engine`, not a model of it, so that a change of the engine changes the prediction with it.

Example: 8 documents of 128 tokens under checkpointing are simulated as one flat row of 1,024 tokens, in the second
step of a run; of the first, which still lacks the optimizer's states, only the update is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sartor.device import kind_of
from sartor.engine.traits import ModelTraits, base_model, read_traits
from sartor.errors import ConfigurationError
from sartor.memory import extrapolate, meta_model, optimizers, simulated_step
from sartor.memory.extrapolate import Kinds
from sartor.memory.limits import RESIDENT_PER_LIVE
from sartor.memory.prediction import PASS, Component, Phase, Prediction, Stretch, Training, Work
from sartor.records import Plan

__all__ = ["Known", "Training", "Work", "meta_model_of", "simulate", "simulate_model"]

CPU_MARGIN = 0.02
"""Above the largest error of benchmarks/memory.csv."""
CUDA_MARGIN = 0.10
"""Unmeasured."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Of a process on a GPU, and cuBLAS' workspaces.  Unmeasured."""
_AFTER_UPDATE = (Phase.ANSWERS, Phase.SAVING)

Known = dict[Any, list[Stretch]]
"""What small models of one training needed, to be used again: settings that differ in the number of recomputed layers
share them."""


def simulate(config: Any, plan: Plan, work: Work, training: Training | None = None) -> Prediction:
    """Predict the memory of one optimizer step.

    Args:
        config: a transformers configuration of a causal language model; no weights are read.
        plan: how the step is executed; its `device` decides whose rules hold.
        work: the micro-batch.
        training: what is trained.

    Raises:
        ConfigurationError: the optimizer is not known, or the work is empty.
        ModelError: the model cannot be trained here.
    """
    training = training or Training()
    model = meta_model_of(config, plan.compute_dtype, training)
    return simulate_model(model, plan, work, training)


def meta_model_of(config: Any, compute_dtype: str, training: Training) -> nn.Module:
    """The model that `simulate_model` takes, from a configuration, with the dtypes of a training."""
    model = meta_model.build(
        config,
        dtype=getattr(torch, training.arrival_dtype),
        lora=training.lora,
        four_bit=training.four_bit,
    )
    meta_model.widen(model, getattr(torch, compute_dtype), rounds=training.settings.stochastic_rounding)
    return model


def simulate_model(
    model: nn.Module,
    plan: Plan,
    work: Work,
    training: Training,
    known: Known | None = None,
    *,
    is_rough: bool = False,
) -> Prediction:
    """Predict the memory of one optimizer step of a model without memory; it can be used again for another plan.

    Args:
        model: on the meta device, from `meta_model_of` or `meta_model.imitate`, in the dtypes of a training.
        plan: how the step is executed.
        work: the micro-batch.
        training: what is trained; its dtype, adapter and quantization are the model's already.
        known: of this model and this training, to be filled and used again.
        is_rough: for comparing settings in half the time: the same peak, but extrapolation is not checked by a model of
            one layer more, and of several micro-batches the timeline has the last one alone.

    Raises:
        ConfigurationError: the optimizer is not known, or the work is empty.
        ModelError: the model cannot be trained here.
    """
    if not work.document_lengths or not 0 <= work.num_targets <= sum(work.document_lengths):
        raise ConfigurationError(
            f"a micro-batch of {len(work.document_lengths)} documents with {work.num_targets} targets cannot be "
            "simulated: it needs documents, and no more targets than tokens."
        )
    traits = read_traits(model)
    known = {} if known is None else known
    passes, note = _passes(model, traits, plan, work, training, known, is_rough=is_rough)
    key = ("updates", *_execution(plan), plan.optimizer_implementation, plan.optimizer_states)
    if key not in known:
        updates = simulated_step.updates(model, traits, plan, work, training)
        stands = {Component.LOGITS: _standing_logits(updates), Component.TEMPORARIES: _micro_batch_bytes(work, plan)}
        known[key] = [_more(part, stands, -1) for part in updates]
    passes, updates = _joined(passes, known[key], _micro_batch_bytes(work, plan))
    rehearsals = [_rehearsal(model, part, passes) for part in updates if part.phase == Phase.REHEARSAL]
    first, *later = [part for part in updates if part.phase != Phase.REHEARSAL]
    between = [part for part in (*passes, *later) if part.phase not in _AFTER_UPDATE]
    after = [part for phase in _AFTER_UPDATE for part in (*passes, *later) if part.phase == phase]
    notes = [note]
    if training.asked is not None and not any(part.phase == Phase.ANSWERS for part in after):
        notes.append("answers are not foreseen: this architecture keeps its state in a way of its own")
    return _prediction([*rehearsals, first, *between, *after], notes, plan, training)


def _joined(
    passes: Sequence[Stretch], updates: Sequence[Stretch], num_bytes: int
) -> tuple[list[Stretch], list[Stretch]]:
    """Passes with the optimizer's states, and updates with what stands there of passes.

    Args:
        passes: without states.
        updates: without the logits' buffer and the micro-batch.
        num_bytes: of the micro-batch.
    """
    states = next(part for part in updates if part.phase == Phase.CLIP).components.get(Component.OPTIMIZER, 0)
    stands = {Component.LOGITS: _standing_logits(passes), Component.TEMPORARIES: num_bytes}
    return [_more(part, {Component.OPTIMIZER: states}) for part in passes], [_more(part, stands) for part in updates]


def _standing_logits(parts: Sequence[Stretch]) -> int:
    """Of the buffer that is there from micro-batch to micro-batch."""
    return min(part.components.get(Component.LOGITS, 0) for part in parts)


def _more(part: Stretch, changes: Mapping[Component, int], sign: int = 1) -> Stretch:
    found = {component: part.components.get(component, 0) + sign * size for component, size in changes.items()}
    return replace(part, components={**part.components, **found})


def _micro_batch_bytes(work: Work, plan: Plan) -> int:
    """Of tokens, positions, targets and their rows."""
    rounding = kind_of(plan.device).block_bytes
    return sum(2 * rounding * -(-8 * count // rounding) for count in (sum(work.document_lengths), work.num_targets))


def _passes(
    model: nn.Module,
    traits: ModelTraits,
    plan: Plan,
    work: Work,
    training: Training,
    known: Known,
    *,
    is_rough: bool,
) -> tuple[Sequence[Stretch], str]:
    """The stretches of the passes, and how they were found."""
    kinds = _kinds(model, traits, plan)
    chosen = extrapolate.layer_subsets(kinds) if kinds is not None else []
    only_last = is_rough and work.num_micro_batches > 1
    recomputation = (plan.gradient_checkpointing, plan.recomputes_cheap)
    key = ("passes", *_execution(plan), plan.loss_chunk_rows, work, *recomputation, only_last)

    def timeline_of(layers: Kinds, places: Sequence[int], of: Plan) -> list[Stretch]:
        own = (*key, of.recomputed_layers, layers)
        if own not in known:
            known[own] = simulated_step.passes(model, traits, of, work, training, places, only_last=only_last)
        return known[own]

    why = ""
    if kinds is not None and extrapolate.are_less_work(chosen, kinds):
        few = {
            subset: timeline_of(subset, extrapolate.places(kinds, subset), _with_layers(plan, subset))
            for subset in (chosen[:-1] if is_rough else chosen)
        }
        timeline = extrapolate.extrapolated(few, tuple(kinds))
        if timeline is not None:
            *sizes, largest = map(len, few)
            listed = f"{', '.join(map(str, sizes))} and {largest} layers"
            return timeline, f"extrapolated from {listed} to {traits.num_layers}, without error between them"
        why = ", since memory is not affine in their number"
    whole = tuple(range(traits.num_layers))
    return timeline_of(whole, whole, plan), f"simulated in full: {traits.num_layers} layers{why}"


def _with_layers(plan: Plan, subset: Kinds) -> Plan:
    """For a few layers, of which as many are recomputed as are of such a kind."""
    if plan.recomputed_layers is None:
        return plan
    return replace(plan, recomputed_layers=sum(_is_recomputed(kind) for kind in subset))


def _execution(plan: Plan) -> tuple[Any, ...]:
    """What updates depend on beside the optimizer, and passes beside what goes through and what is recomputed."""
    return (
        *(plan.layout, plan.attention, plan.compute_dtype, plan.num_threads, plan.device, plan.stochastic_rounding),
        plan.compile_backend,
    )


def _kinds(model: nn.Module, traits: ModelTraits, plan: Plan) -> list[int] | None:
    """A number for each layer, odd where it is recomputed; None where layers are not to be told apart."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = meta_model.layers_of(model, traits.num_layers)
    if found is None:
        return None
    whole = 0
    if plan.gradient_checkpointing:
        whole = traits.num_layers if plan.recomputed_layers is None else plan.recomputed_layers
    if 0 < whole < traits.num_layers:  # counted by the engine in the order of all modules that can be recomputed
        counted = [part for part in base_model(model).modules() if isinstance(part, GradientCheckpointingLayer)]
        if counted != list(found[2]):
            return None
    return [2 * kind + (place < whole) for place, kind in enumerate(meta_model.kinds_of(list(found[2])))]


def _is_recomputed(kind: int) -> bool:
    return kind % 2 == 1


def _prediction(timeline: Sequence[Stretch], notes: list[str], plan: Plan, training: Training) -> Prediction:
    if training.make_optimizer is None and optimizers.is_by_rule(training.optimizer):
        notes.append(f"states of {training.optimizer} by rule, unmeasured")
    if training.four_bit:
        notes.append("4bit weights by rule, unmeasured")
    peak = max(stretch.num_bytes for stretch in timeline)
    is_cuda = not kind_of(plan.device).is_host
    if is_cuda:
        notes.append("CUDA by rules, unmeasured")
    return Prediction(
        tuple(timeline),
        margin_bytes=int(peak * (CUDA_MARGIN if is_cuda else CPU_MARGIN)),
        overhead_bytes=CUDA_CONTEXT_BYTES if is_cuda else 0,
        resident_bytes=peak + CUDA_CONTEXT_BYTES if is_cuda else int(peak * RESIDENT_PER_LIVE),
        notes=tuple(notes),
    )


def _rehearsal(model: nn.Module, update: Stretch, passes: Sequence[Stretch]) -> Stretch:
    """The largest moment of a rehearsal: of its update, or of the pass after it.

    What is added up is what `run.rehearsal` does: copies of the model's buffers stand there throughout, the optimizer's
    states are those that its update made, and the buffer of logits comes with the first pass.

    Args:
        model: without memory.
        update: with copies of the model's buffers; without states, where no update is taken.
        passes: of a step that has one before it.
    """
    copies_bytes = sum(buffer.nbytes for buffer in model.buffers())
    states_bytes = update.components.get(Component.OPTIMIZER, 0)
    moments = [dict(update.components) | {Component.LOGITS: 0}]
    for part in passes:
        if part.phase in PASS:
            temporaries = part.components.get(Component.TEMPORARIES, 0) + copies_bytes
            changed = {Component.OPTIMIZER: states_bytes, Component.TEMPORARIES: temporaries}
            moments.append(dict(part.components) | changed)
    return Stretch(Phase.REHEARSAL, None, max(moments, key=lambda components: sum(components.values())))
