"""The memory of one optimizer step, foreseen: the engine's own step on fake tensors under a live set.

In: a configuration, a plan and the shape of a micro-batch.  Out: a `Prediction`.  What it keeps true: what runs is
`engine.step.Engine`, not a model of it, so that a change of the engine changes the prediction with it.

Example: 8 documents of 128 tokens under checkpointing are simulated as one flat row of 1,024 tokens, in the second
step of a run; of the first, which still lacks the optimizer's states, only the update is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from sartor.engine.step import Engine
from sartor.engine.traits import ModelTraits, evaluating, read_traits
from sartor.errors import ConfigurationError
from sartor.memory import answers, cuda_rules, imagine, optimizers, scratch
from sartor.memory.extrapolate import extrapolated
from sartor.memory.limits import RESIDENT_PER_LIVE
from sartor.memory.prediction import Component, Prediction, Stretch
from sartor.memory.tracker import LiveSet, Phase
from sartor.records import EngineSettings, MicroBatch, Plan

CPU_MARGIN = 0.02
"""Above the largest error of benchmarks/memory.csv."""
CUDA_MARGIN = 0.10
"""Unmeasured."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Of a process on a GPU, and cuBLAS' workspaces.  Unmeasured."""


def simulate(config: Any, plan: Plan, work: Work, training: Training | None = None) -> Prediction:
    """Foresee the memory of one optimizer step.

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
    model = imagined(config, plan.compute_dtype, training)
    return simulate_model(model, plan, work, training)


def imagined(config: Any, compute_dtype: str, training: Training) -> nn.Module:
    """The model that `simulate_model` takes, from a configuration, with the dtypes of a training."""
    model = imagine.build(
        config,
        dtype=getattr(torch, training.arrival_dtype),
        lora=training.lora,
        quantization=training.quantization,
    )
    imagine.widen(model, getattr(torch, compute_dtype))
    return model


def simulate_model(model: nn.Module, plan: Plan, work: Work, training: Training) -> Prediction:
    """Foresee the memory of one optimizer step of a model without memory; it can be used again for another plan.

    Args:
        model: on the meta device, from `imagined` or `imagine.imitate`, in the dtypes of a training.
        plan: how the step is executed.
        work: the micro-batch.
        training: what is trained; its dtype, adapter and quantization are the model's already.

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
    found = imagine.layers_of(model, traits.num_layers)

    def step(kept: int) -> list[Stretch]:
        return _one_step(model, traits, plan, work, training, kept)

    is_uniform = found is not None and imagine.are_alike(list(found[2]))
    if plan.gradient_checkpointing and plan.recomputed_layers:
        is_uniform = False  # the first layers are recomputed and the others are not
    if not is_uniform:
        timeline: Sequence[Stretch] = step(traits.num_layers)
        note = f"simulated in full: {traits.num_layers} layers"
    else:
        timeline, note = extrapolated(step, traits.num_layers)
    return _prediction(timeline, note, plan, training)


def _prediction(timeline: Sequence[Stretch], note: str, plan: Plan, training: Training) -> Prediction:
    notes = [note]
    if training.make_optimizer is None and training.optimizer in optimizers.RULED:
        notes.append(f"states of {training.optimizer} by rule, unmeasured")
    if training.quantization is not None:
        notes.append(f"{training.quantization} weights by rule, unmeasured")
    peak = max(stretch.num_bytes for stretch in timeline)
    is_cuda = plan.device.startswith("cuda")
    if is_cuda:
        notes.append("CUDA by rules, unmeasured")
    return Prediction(
        tuple(timeline),
        margin_bytes=int(peak * (CUDA_MARGIN if is_cuda else CPU_MARGIN)),
        overhead_bytes=CUDA_CONTEXT_BYTES if is_cuda else 0,
        resident_bytes=peak + CUDA_CONTEXT_BYTES if is_cuda else int(peak * RESIDENT_PER_LIVE),
        notes=tuple(notes),
    )
