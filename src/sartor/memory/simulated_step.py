"""A training on fake tensors: the engine's own passes and the optimizer's own updates, under a live set.

In: a model without memory, a plan, the work.  Out: the stretches of what was done.  What it keeps true: what runs is
`engine.step.Engine`, not a model of it, so that a change of the engine changes the prediction with it.

Passes and updates are done apart, since passes may be taken by a few of the model's layers, while updates, which walk
through lists of parameters in pieces, always take all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sartor.device import kind_of
from sartor.engine.precision import autocast
from sartor.engine.step import Engine
from sartor.engine.traits import ModelTraits, base_model, evaluating, is_adapter
from sartor.memory import kernel_rules, meta_model, optimizers
from sartor.memory.prediction import Asked, Component, Phase, Stretch, Training, Work
from sartor.memory.tracker import LiveSet, marking_layers
from sartor.optim import rounded_update
from sartor.optim.host_states import HostStates
from sartor.optim.transaction import Update, planned_update
from sartor.records import MicroBatch, Plan

_ALONE_IN_PIECES = 3
"""Blocks of a parameter, of which two go in a piece: one that has more shares no piece throughout with any other."""


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """What there is before the first pass."""

    live: LiveSet
    engine: Engine
    optimizer: torch.optim.Optimizer
    micro: MicroBatch
    training: Training

    def make_gradients(self) -> None:
        """Of no content."""
        optimizers.make_gradients(self.optimizer)
        self.live.own(Component.GRADIENTS, (parameter.grad for parameter in self.engine.model.parameters()))

    def update(self) -> None:
        """The optimizer's step, as the run takes it; states that it makes are known as such."""
        with self._without_repetitions():
            self._update().step()
        self._own_states()

    def rehearse(self) -> None:
        """The first step as a rehearsal takes it, beside copies of the model's buffers; nothing stays."""
        self.live.enter(Phase.REHEARSAL)
        copies = [buffer.clone() for buffer in self.engine.model.buffers()]
        is_done = False
        if self.training.rehearses_update and self.engine.compute_dtype != torch.float16:  # its loss scale would move
            with self._without_repetitions():
                is_done = self._update().rehearse()
        self._own_states()
        if is_done:
            self.optimizer.state.clear()
        del copies

    def _update(self) -> Update:
        """The run's own; one that rounds leaves out blocks that repeat."""
        plan = self.engine.plan
        if not plan.stochastic_rounding:
            return planned_update(self.optimizer, plan)
        host = HostStates(self.optimizer) if plan.optimizer_states == "host" else None
        return Update(self.optimizer, host, FewBlocks(self.optimizer, 0, host))

    def _own_states(self) -> None:
        """Arrays that the host keeps are not in a GPU's memory; counts of steps are."""
        plan, kept = self.engine.plan, optimizers.states(self.optimizer)
        self.live.own(Component.OPTIMIZER, kept)
        if plan.optimizer_states == "host" and not kind_of(plan.device).is_host:
            arrays = (state for state in kept if state.dim() > 0)
            self.live.own(Component.OPTIMIZER, arrays, is_elsewhere=True)

    @contextmanager
    def _without_repetitions(self) -> Iterator[None]:
        """An update that rounds leaves out parameters that it would take as it takes one before and one after them.

        Those are parameters of one shape that fill pieces of the update by themselves.  An update takes no parameter
        without a gradient; and states are then there as of the one before.
        """
        alike: dict[Any, list[nn.Parameter]] = {}
        for parameter in self.engine.model.parameters() if self.engine.plan.stochastic_rounding else ():
            if parameter.grad is not None and parameter.numel() > _ALONE_IN_PIECES * rounded_update.BLOCK_VALUES:
                alike.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
        left_out = [(parameter, some[0], parameter.grad) for some in alike.values() for parameter in some[1:-1]]
        for parameter, _, _ in left_out:
            parameter.grad = None
        yield
        states = self.optimizer.state
        for parameter, like, gradient in left_out:
            parameter.grad = gradient
            if not states.get(parameter):
                states[parameter] = {name: torch.empty_like(value) for name, value in states[like].items()}

    def backward(self) -> None:
        """Forward and backward of the micro-batch."""
        self.engine.backward(
            self.micro, batch_targets=max(1, self.micro.num_targets), batch_tokens=self.micro.num_tokens
        )
        self.live.own(Component.GRADIENTS, (parameter.grad for parameter in self.engine.model.parameters()))

    def unscale(self) -> None:
        """What float16's scaler does with the gradients before they are clipped."""
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.ones(()))
        scaler.unscale_(self.optimizer)

    @torch.no_grad()
    def answer(self, asked: Asked) -> None:
        """The first pass and the last one of the model's own `generate`, with the attention that it has there.

        What is kept from token to token, keys and values or a state, is transformers' own; nothing where an
        architecture keeps it in a way of its own.
        """
        from transformers import DynamicCache

        inner: Any = base_model(self.engine.model)
        taken = inspect.signature(inner.forward).parameters
        name = next((one for one in ("past_key_values", "cache_params") if one in taken), None)
        if name is None:
            return
        cache = DynamicCache(config=inner.config)
        with evaluating(self.engine.model), autocast(torch.device("cpu"), self.engine.compute_dtype):
            for phase, num_tokens in (
                (Phase.ANSWERS, asked.prompt_tokens),
                (Phase.BATCH, asked.new_tokens - 2),  # the tokens between, which come one by one
                (Phase.ANSWERS, 1),
            ):
                if num_tokens <= 0:
                    continue
                self.live.enter(phase)
                ids_BL = torch.zeros(asked.num_prompts, num_tokens, dtype=torch.int64)
                found = inner(input_ids=ids_BL, use_cache=True, logits_to_keep=1, **{name: cache})
                choice = found.logits[:, -1].to(torch.float32, copy=True).argmax(-1)
                del found, choice

    def save(self) -> None:
        """The weights in the dtype they arrived in, as `engine.precision.Masters.rounded` shows them to be saved."""
        self.live.enter(Phase.SAVING)
        arrival: torch.dtype = getattr(torch, self.training.arrival_dtype)
        model = self.engine.model
        widened = (p for p in model.parameters() if not (is_adapter(model) and p.requires_grad))  # adapters were wide
        rounded = [parameter.data.to(arrival) for parameter in widened if parameter.dtype == torch.float32]
        # What is trained in bfloat16 is made as wide as it arrived; an adapter arrived in float32.
        arrived = torch.float32 if is_adapter(model) else arrival
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        rounded += [parameter.data.to(arrived) for parameter in trained if parameter.dtype == torch.bfloat16]
        del rounded


class FewBlocks(rounded_update.RoundedUpdate):
    """A rounded update that takes the first three blocks that are left of a parameter, and the last: all are alike."""

    def _blocks(self, parameter: nn.Parameter, number: int) -> Iterator[Any]:
        blocks = list(super()._blocks(parameter, number))
        yield from blocks if len(blocks) <= 3 else (*blocks[:3], blocks[-1])


@contextmanager
def set_up(
    model: nn.Module, traits: ModelTraits, plan: Plan, work: Work, training: Training, places: Sequence[int]
) -> Iterator[SimulatedStep]:
    """Everything set up as a run sets it up, for the model with these of its layers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind = kind_of(plan.device)
    is_cuda = not kind.is_host
    live = LiveSet(kernel_rules.rules(kind, plan.num_threads), rounding_bytes=kind.block_bytes)
    with ExitStack() as stack:
        stack.enter_context(meta_model.with_layers(model, traits.num_layers, places))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(live)
        meta_model.materialise(model)
        live.enter(Phase.BATCH)
        engine = Engine(model, traits, replace(plan, compile_backend=None), training.settings)  # of programs, no rules
        engine.balance_coefficient = training.balance_coefficient
        engine.on_phase = lambda name: live.enter(Phase(name))
        engine.form = replace(engine.form, pieces=_differing_pieces)
        make = training.make_optimizer or optimizers.maker(
            training.optimizer,
            is_cuda=is_cuda,
            implementation=plan.optimizer_implementation,
            options=training.optimizer_options,
        )
        optimizer = make(optimizers.groups_of(model, base_model(model).get_input_embeddings()))
        simulated_step = SimulatedStep(live, engine, optimizer, _micro_batch(work), training)
        if is_cuda:
            stack.enter_context(kernel_rules.CudaAutocast())
        stack.enter_context(engine.running())
        # What an engine keeps from micro-batch to micro-batch is there now.
        with meta_model.with_layers(model, len(places), [0]):
            simulated_step.backward()
        stack.enter_context(marking_layers(live, model, len(places)))
        yield simulated_step


def passes(
    model: nn.Module,
    traits: ModelTraits,
    plan: Plan,
    work: Work,
    training: Training,
    places: Sequence[int],
    *,
    only_last: bool = False,
) -> list[Stretch]:
    """Forward and backward passes of a step, with these of the model's layers; where asked for, an evaluation after it.

    The optimizer's states, which stand there all the time, are left out.

    Args:
        model: without memory.
        traits: of it.
        plan: how the step is executed.
        work: the micro-batch.
        training: what is trained.
        places: of the layers.
        only_last: of several micro-batches, take the one that needs most: gradients stand there all the time.
    """
    num_passes = min(2, work.num_micro_batches)
    with set_up(model, traits, plan, work, training, places) as simulated_step:
        live = simulated_step.live
        model.zero_grad(set_to_none=True)  # those of the pass that set the engine up
        simulated_step.optimizer.state.clear()  # some have states from the beginning
        if only_last and num_passes > 1:
            num_passes = 1
            simulated_step.make_gradients()
        first = live.num_marks()
        for _ in range(num_passes):
            simulated_step.backward()
    return live.stretches(first)


def updates(model: nn.Module, traits: ModelTraits, plan: Plan, work: Work, training: Training) -> list[Stretch]:
    """The first update, where states are made; clipping and update of a later step; where asked for, before them a
    rehearsal's update, and after them answers and saving."""
    with set_up(model, traits, plan, work, training, range(traits.num_layers)) as simulated_step:
        live = simulated_step.live
        simulated_step.make_gradients()
        first = live.num_marks()
        if training.rehearses:
            simulated_step.rehearse()
        live.enter(Phase.FIRST_UPDATE)
        simulated_step.update()
        live.enter(Phase.CLIP)
        if simulated_step.engine.compute_dtype == torch.float16:
            simulated_step.unscale()
        simulated_step.engine.gradient_norm(training.settings.max_grad_norm)
        live.enter(Phase.UPDATE)
        simulated_step.update()
        model.zero_grad(set_to_none=True)
        if training.asked is not None:
            simulated_step.answer(training.asked)
        if training.saves:
            simulated_step.save()
    return [stretch for stretch in live.stretches(first) if stretch.phase != Phase.BATCH]


def _differing_pieces(num_rows: int, piece_rows: int) -> list[int]:
    """Where the first two pieces and the last one begin: all between allocate as the second does."""
    starts = range(0, num_rows, piece_rows)
    return sorted({*starts[:2], *starts[-1:]})


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
