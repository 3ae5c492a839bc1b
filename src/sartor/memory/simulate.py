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
from sartor.memory.prediction import Component, Prediction, Stretch
from sartor.memory.tracker import LiveSet, Phase
from sartor.records import EngineSettings, MicroBatch, Plan

CPU_MARGIN = 0.02
"""Above the largest error of benchmarks/memory.csv."""
CUDA_MARGIN = 0.10
"""Unmeasured."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Of a process on a GPU, and cuBLAS' workspaces.  Unmeasured."""
RESIDENT_PER_LIVE = 1.14
"""What glibc keeps for each live byte at the peak, between its blocks: 13 to 14 % in steps like these."""


@dataclass(frozen=True, slots=True)
class Work:
    """What goes through the model at once."""

    document_lengths: tuple[int, ...]
    num_targets: int
    num_micro_batches: int = 1
    """Of the optimizer batch: from the second one on, gradients are there before the pass begins."""


def _plain_update(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    optimizer.step()


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, and how: everything that changes bytes beside the plan."""

    arrival_dtype: str = "float32"
    """That the model was loaded in; what is trained becomes float32."""
    optimizer: str = "adamw_torch_fused"
    make_optimizer: optimizers.MakeOptimizer | None = None
    """Takes the place of `optimizer`'s own maker."""
    update: Callable[[torch.optim.Optimizer, Plan], None] = _plain_update
    """How the run takes the optimizer's step under a plan."""
    lora: Any = None
    """A peft configuration."""
    quantization: str | None = None
    settings: EngineSettings = field(default_factory=EngineSettings)
    balance_coefficient: float = 0.0
    evaluates: bool = False
    """Add the stretch of an evaluation between steps, of a micro-batch of the same shape."""
    saves: bool = False
    """Add the stretch of saving: what is trained once more, in the dtype that it arrived in."""


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


def _one_step(
    model: nn.Module, traits: ModelTraits, plan: Plan, work: Work, training: Training, kept: int
) -> list[Stretch]:
    """The stretches of the second step of the model with its first `kept` layers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    is_cuda = plan.device.startswith("cuda")
    live = LiveSet(
        scratch.rules("cuda" if is_cuda else "cpu", plan.num_threads),
        answers=answers.largest,
        rounding_bytes=cuda_rules.ROUNDING_BYTES if is_cuda else 1,
    )
    with ExitStack() as stack:
        stack.enter_context(imagine.shortened(model, traits.num_layers, kept))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(live)
        imagine.materialise(model)
        live.enter(Phase.BATCH)
        micro = _micro_batch(work)
        engine = Engine(model, traits, plan, training.settings)
        engine.balance_coefficient = training.balance_coefficient
        engine.on_phase = lambda name: live.enter(Phase(name))
        engine.form = replace(engine.form, fits_cache=not is_cuda, pieces=_differing_pieces)
        make = training.make_optimizer or optimizers.maker(
            training.optimizer, is_cuda=is_cuda, implementation=plan.optimizer_implementation
        )
        optimizer = make(optimizers.groups_of(model, imagine.embedding(model)))
        if is_cuda:
            stack.enter_context(cuda_rules.CudaAutocast())
        with _device_of(engine, plan):
            stack.enter_context(engine.running())
        with imagine.shortened(model, kept, 1):  # what an engine keeps from micro-batch to micro-batch is there now
            engine.backward(micro, batch_targets=max(1, work.num_targets), batch_tokens=micro.num_tokens)
        stack.enter_context(marking_layers(live, model, kept))
        optimizers.make_gradients(optimizer)
        live.own(Component.GRADIENTS, (parameter.grad for parameter in model.parameters()))
        first = live.num_marks()
        live.enter(Phase.FIRST_UPDATE)  # where states are made, which may need more than any later step
        training.update(optimizer, plan)
        live.own(Component.OPTIMIZER, optimizers.states(optimizer))
        optimizer.zero_grad(set_to_none=True)
        for _ in range(min(2, work.num_micro_batches)):
            engine.backward(micro, batch_targets=max(1, work.num_targets), batch_tokens=micro.num_tokens)
            live.own(Component.GRADIENTS, (parameter.grad for parameter in model.parameters()))
        live.enter(Phase.CLIP)
        engine.gradient_norm(training.settings.max_grad_norm)
        live.enter(Phase.UPDATE)
        training.update(optimizer, plan)
        model.zero_grad(set_to_none=True)
        if training.evaluates:
            live.enter(Phase.EVALUATION)
            with evaluating(model):
                engine.measure(micro)
        if training.saves:
            live.enter(Phase.SAVING)
            arrival: torch.dtype = getattr(torch, training.arrival_dtype)
            rounded = [parameter.data.to(arrival) for parameter in model.parameters() if parameter.requires_grad]
            del rounded
    return live.stretches(first)


def _differing_pieces(num_rows: int, piece_rows: int) -> list[int]:
    """Where the first two pieces and the last one begin: all between allocate as the second does."""
    starts = range(0, num_rows, piece_rows)
    return sorted({*starts[:2], *starts[-1:]})


@contextmanager
def _device_of(engine: Engine, plan: Plan) -> Iterator[None]:
    """The plan's device while the engine sets itself up: some of what it sets up is for a CPU alone."""
    before = engine.device
    engine.device = torch.device(plan.device)
    try:
        yield
    finally:
        engine.device = before


def _micro_batch(work: Work) -> MicroBatch:
    num_tokens = sum(work.document_lengths)
    return MicroBatch(
        torch.zeros(num_tokens, dtype=torch.int64),
        torch.zeros(num_tokens, dtype=torch.int64),
        work.document_lengths,
        torch.zeros(work.num_targets, dtype=torch.int64),
        torch.zeros(work.num_targets, dtype=torch.int64),
        tuple(range(len(work.document_lengths))),
    )


class Marks(Protocol):
    """Whoever measures a step, and is told what begins."""

    phase: Phase

    def enter(self, phase: Phase, layer: int | None = None) -> None:
        """From now on the step is in this phase, in this layer of the decoder."""
        ...


def marking_layers(live: Marks, model: nn.Module, kept: int) -> ExitStack:
    """Hooks that tell `live` which of the decoder's `kept` layers begins, forward and backward; they keep no tensor."""
    undo = ExitStack()
    found = imagine.layers_of(model, kept)
    if found is None:
        return undo

    def began(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if live.phase is Phase.FORWARD:  # not where it is computed again
                live.enter(Phase.FORWARD, number)
                if number == 0:
                    _mark_gradient(live, args[0] if args else kwargs.get("hidden_states"), None)

        return hook

    def ended(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if live.phase is Phase.FORWARD:
                _mark_gradient(live, output[0] if isinstance(output, tuple) else output, number)
                if number == kept - 1:
                    live.enter(Phase.FORWARD)

        return hook

    for number, layer in enumerate(found[2]):
        undo.callback(layer.register_forward_pre_hook(began(number), with_kwargs=True).remove)
        undo.callback(layer.register_forward_hook(ended(number)).remove)
    return undo


def _mark_gradient(live: Marks, hidden: Any, layer: int | None) -> None:
    """When this tensor's gradient is there, the backward pass enters the layer that made the tensor."""
    if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
        hidden.register_hook(lambda gradient: live.enter(Phase.BACKWARD, layer))
