"""The rehearsal: before the first step, the run's worst micro-batch goes through forward and backward once.

In: a run that is set up.  Out: what was measured, what was foreseen, and a plan that has held.  What it keeps
true: weights, optimizer states, buffers and random generators are afterwards what they were, bit for bit.

For example: 2,048 tokens at once do not fit in 1.5 GB.  Without a rehearsal that is found out when the longest
documents come together, perhaps in the ninth hour; here it is before the first step, where the cut is made finer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from sartor import compat
from sartor.engine.flops import step_flops
from sartor.engine.step import Engine
from sartor.engine.traits import ModelTraits
from sartor.errors import ConfigurationError
from sartor.memory import meta_model, trace, worst_batch
from sartor.memory.failure import reason_of
from sartor.memory.optimizers import maker_like
from sartor.memory.prediction import MakeOptimizer, Phase, Prediction
from sartor.memory.simulate import CPU_MARGIN, Training, Work, simulate_model
from sartor.memory.trace import Measured, Trace
from sartor.memory.tracker import marking_layers
from sartor.records import Example, Layout, MicroBatch, Plan
from sartor.run.cutting import keyed_micro_batches
from sartor.run.data_loader import TrainDataLoader
from sartor.run.settings import RunSettings
from sartor.run.setup import matrix_rate
from sartor.run.state import generator_states, restore_generators
from sartor.run.stepper import Updater
from sartor.wording import amount

MEMORY_NAME = "memory.json"
_EPOCHS = 3
"""Whose optimizer batches are looked at: later ones put the same rows together in other ways, of which few are worse,
and none is fatal."""


Rehearsed = tuple[dict[str, Any], Plan]
"""What `memory.json` holds, and the plan with what was measured."""


def rehearse_run(
    settings: RunSettings,
    data_loader: TrainDataLoader,
    updater: Updater,
    num_steps: int,
    say: Callable[[str], None],
) -> Rehearsed | None:
    """Rehearse a run where `rehearse` asks for it, or where it says nothing and it costs little; None: it was not.

    Args:
        settings: of the run.
        data_loader: its data.
        updater: of its optimizer; its recovery has the engine.
        num_steps: of the run.
        say: tells the user one thing.

    Raises:
        OutOfMemoryError: not even one document goes through.
    """
    asked = settings.rehearse
    if asked is False:
        return None
    engine = updater.recovery.engine
    against = _impossible(settings, data_loader)
    if against is not None:
        if asked:
            say(f"rehearse=True: there is no rehearsal: {against}.")
        return None
    if not asked and worst_batch.is_tiny(num_steps, _run_s(engine, data_loader, num_steps)):
        return None
    ahead = _Ahead.of(engine, data_loader, num_steps=num_steps, is_asked=bool(asked))
    worst = ahead.worst(engine)
    if not worst or (not asked and worst_batch.is_costly(worst[0].micro.num_tokens, ahead.run_tokens)):
        return None
    return Rehearsal(updater, ahead, say).run()


def rehearse_now(
    settings: RunSettings,
    data_loader: TrainDataLoader,
    updater: Updater,
    num_steps: int,
    say: Callable[[str], None],
) -> Rehearsed:
    """Rehearse outside of a run, whatever it costs; see `rehearse_run`.

    Raises:
        ConfigurationError: there is nothing to rehearse; says why.
        OutOfMemoryError: not even one document goes through.
    """
    against = _impossible(settings, data_loader)
    if against:
        raise ConfigurationError(f"the memory of a step cannot be looked at beforehand: {against}.")
    ahead = _Ahead.of(updater.recovery.engine, data_loader, num_steps=num_steps, is_asked=True)
    return Rehearsal(updater, ahead, say).run()


def _impossible(settings: RunSettings, data_loader: TrainDataLoader) -> str | None:
    if settings.own_loss:
        return "an own loss or data_collator may do anything with a batch, and should not see one twice"
    if data_loader.examples is None:
        return "which rows a stream gives is not known before"
    return None


def _run_s(engine: Engine, data_loader: TrainDataLoader, num_steps: int) -> float | None:
    """What a run takes at the device's rate of matrix products; None where that is not known."""
    rate = matrix_rate(engine.device, engine.compute_dtype)
    if rate is None or data_loader.examples is None or not len(data_loader.examples):
        return None
    length = int(data_loader.examples.lengths.mean())
    num_rows = num_steps * data_loader.settings.examples_per_step
    return num_rows * step_flops(engine.traits, [length], length) / rate


@dataclass(slots=True)
class _Ahead:
    """The optimizer batches of a run that may hold its largest micro-batch."""

    is_asked: bool
    """Whatever it costs."""
    batches: list[tuple[tuple[int, ...], tuple[Example, ...]]]
    """Keys and examples of each."""
    run_tokens: float

    @classmethod
    def of(cls, engine: Engine, data_loader: TrainDataLoader, *, num_steps: int, is_asked: bool) -> _Ahead:
        """Look through the run's first epochs."""
        examples = data_loader.examples
        assert examples is not None
        groups: list[list[int]] = []
        for epoch in range(_EPOCHS):
            left = num_steps - len(groups)
            found = [[row for batch in group for row in batch] for group in islice(data_loader.groups(epoch), left)]
            groups += [group for group in found if group]
        rows = worst_batch.Rows(examples.lengths, examples.num_targets())
        batches = worst_batch.Batches.of(groups)
        run_tokens = float(rows.tokens[batches.rows].sum()) * num_steps / max(1, len(groups))
        numbers = worst_batch.candidates(rows, batches, engine.plan.micro_batch_tokens)
        keys = [tuple(batches.keys(number)) for number in numbers]
        return cls(is_asked, [(one, tuple(examples.take(one))) for one in keys], run_tokens)

    def worst(self, engine: Engine) -> list[_Worst]:
        """Under the plan as it is: the micro-batches with most tokens, longest document, most targets; each once.

        The second and third only as far as they are cheap, too.
        """
        found: list[_Worst] = []
        for keys, examples in self.batches:
            cut = [micro for _, micro in keyed_micro_batches(engine, examples, keys)]
            found += [_Worst(micro, len(cut)) for micro in cut]
        padded = engine.plan.layout is Layout.PADDED
        measures = (
            lambda one: _size(one.micro, padded),
            lambda one: max(one.micro.document_lengths),
            lambda one: one.micro.num_targets,
        )
        chosen: list[_Worst] = []
        for measure in measures if found else ():
            best = max(found, key=measure)
            if all(measure(one) < measure(best) for one in chosen):
                chosen.append(best)
        allowed = worst_batch.LARGEST_SHARE * self.run_tokens - (chosen[0].micro.num_tokens if chosen else 0)
        kept = chosen[:1]
        for one in chosen[1:]:
            if self.is_asked or one.micro.num_tokens <= allowed:
                kept.append(one)
                allowed -= one.micro.num_tokens
        return kept


@dataclass(frozen=True, slots=True)
class _Worst:
    """A micro-batch, and how many its optimizer batch is cut into."""

    micro: MicroBatch
    num_micro_batches: int


def _size(micro: MicroBatch, padded: bool) -> int:
    return len(micro.document_lengths) * max(micro.document_lengths) if padded else micro.num_tokens


class Rehearsal:
    """Forward and backward of the worst micro-batches, under the optimizer's states, with everything put back."""

    def __init__(self, updater: Updater, ahead: _Ahead, say: Callable[[str], None]) -> None:
        self._say = say
        self._engine = engine = updater.recovery.engine
        self._updater = updater
        self._ahead = ahead
        self._worst: list[_Worst] = []
        self._last: MicroBatch | None = None
        self._updates = True
        """Whether the update is rehearsed too."""
        self._is_corrected = False
        """Whether the plan was found to foresee too little."""
        self._held_bytes = trace.held_bytes(engine.model)
        """Of the model, of copies of its buffers, and of states that the optimizer has from the beginning."""
        self._update_bytes = 0
        """The most that was in use before the first pass."""
        self._unmeasured = ""
        """Why nothing was measured; then only what is out of memory is found."""

    def run(self) -> Rehearsed:
        """Rehearse, and say what was found."""
        engine, recovery = self._engine, self._updater.recovery
        with _unchanged(engine) as copies:
            self._held_bytes = trace.held_bytes(engine.model, [*copies, *self._updater.states()])
            try:
                worst, measured = recovery.retry("the rehearsal", self._corrected, self._less, self._undo)
            finally:
                self._undo()
            work = Work(worst.micro.document_lengths, worst.micro.num_targets, worst.num_micro_batches)
            prediction, reason = estimate_peak(engine, maker_like(self._updater.optimizer), work, updates=self._updates)
        what = about(engine.model, engine.traits, engine.plan, work)
        found = trace.as_json(prediction, measured, what, reason, self._unmeasured)
        found["instrument"] = trace.instrument(engine.device)
        measured_bytes = None
        if not self._unmeasured:
            measured_bytes = max(found["measured"]["peak_bytes"], self._update_bytes)
        found["measured"]["peak_bytes"] = measured_bytes
        foreseen_bytes = None if prediction is None else prediction.rehearsal_bytes
        engine.replan(dataclasses.replace(engine.plan, measured_bytes=measured_bytes))
        self._say(sentence(worst.micro, measured_bytes, foreseen_bytes, reason, self._unmeasured))
        return found, engine.plan

    def _corrected(self) -> tuple[_Worst, list[Measured]]:
        """`_attempt`; where it needed more than was foreseen, the plan counts with that from then on, and it is tried
        once more: the guard cuts finer what would not fit then.
        """
        plan, (worst, measured) = self._engine.plan, self._attempt()
        foreseen = plan.predicted_bytes.get("peak")
        largest = max((stretch.num_bytes for stretch in measured), default=0)
        if self._is_corrected or foreseen is None or plan.pass_bytes is None or not plan.pass_tokens:
            return worst, measured
        if largest <= (1 + CPU_MARGIN) * foreseen:
            return worst, measured
        self._is_corrected = True
        more = (largest - foreseen) * plan.pass_tokens // worst.micro.num_tokens
        self._engine.replan(dataclasses.replace(plan, pass_bytes=plan.pass_bytes + more))
        self._say(
            f"the rehearsal needed {amount(largest - foreseen)} more than was foreseen: the plan counts with it from "
            "here on"
        )
        self._undo()
        return self._attempt()

    def _attempt(self) -> tuple[_Worst, list[Measured]]:
        """The micro-batch that needed most, and its pass's stretches."""
        engine = self._engine
        engine.model.train()
        self._worst = self._ahead.worst(engine)
        self._last = None
        with Trace(engine.device, self._held_bytes) as watch, _heard(engine, watch):
            for parameter in engine.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            watch.enter(Phase.FIRST_UPDATE)
            with self._updated():
                passes = []
                for worst in self._worst:
                    if worst.num_micro_batches == 1:
                        engine.model.zero_grad(set_to_none=True)
                    passes.append((worst, *self._pass(worst.micro, watch)))
        self._unmeasured = watch.reason
        if watch.reason:
            return self._worst[0], []
        self._update_bytes = max(stretch.num_bytes for stretch in watch.stretches[: passes[0][1]])
        parts = [(worst, watch.stretches[first:last]) for worst, first, last in passes]
        return max(parts, key=lambda part: max(stretch.num_bytes for stretch in part[1]))

    @contextmanager
    def _updated(self) -> Iterator[None]:
        """With the optimizer's states, which a run's second step and all later ones find."""
        if not self._updates:
            yield
            return
        with self._updater.rehearsed():
            yield

    def _pass(self, micro: MicroBatch, watch: Trace) -> tuple[int, int]:
        """Forward, backward and clipping; returns where its stretches begin and end."""
        engine, guard = self._engine, self._updater.recovery.guard
        self._last = micro
        guard.before(micro.num_tokens, trains=True)
        first = watch.num_stretches()
        engine.backward(
            micro,
            batch_targets=max(1, micro.num_targets),
            batch_tokens=micro.num_tokens,
            loss_scale=self._updater.loss_scale,
        )
        watch.enter(Phase.CLIP)
        engine.gradient_norm(engine.settings.max_grad_norm)
        last = watch.num_stretches()
        watch.enter(Phase.BATCH)
        guard.after(micro.num_tokens, trains=True)
        guard.before(micro.num_tokens, trains=True)  # by what was measured now: does it fit once more?
        return first, last

    def _less(self) -> str | None:
        if self._last is None and self._updates:  # the update comes first
            self._updates = False
            return "the update is left out of the rehearsal; the run takes it in pieces"
        tokens = self._last.num_tokens if self._last is not None else 1
        documents = len(self._last.document_lengths) if self._last is not None else 1
        return self._updater.recovery.train_with_less(tokens, documents)

    def _undo(self) -> None:
        self._updater.discard()


@contextmanager
def _unchanged(engine: Engine) -> Iterator[list[torch.Tensor]]:
    """Put back what a pass moves besides gradients: generators, buffers, the model's mode.

    Yields the copies of buffers that it keeps meanwhile.
    """
    generators, trains = generator_states(), engine.model.training
    buffers = [(buffer, buffer.clone()) for buffer in engine.model.buffers()]
    try:
        yield [before for _, before in buffers]
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        engine.model.train(trains)
        restore_generators(generators)


@contextmanager
def _heard(engine: Engine, watch: Trace) -> Iterator[None]:
    """The engine and its layers say to `watch` what begins."""
    before, engine.on_phase = engine.on_phase, lambda name: watch.enter(Phase(name))
    try:
        with marking_layers(watch, engine.model, engine.traits.num_layers):
            yield
    finally:
        engine.on_phase = before


def estimate_peak(
    engine: Engine, make_optimizer: MakeOptimizer, work: Work, *, updates: bool = True
) -> tuple[Prediction | None, str]:
    """What step and rehearsal, which `updates` or does not, need by simulation; None with the reason why it failed."""
    try:
        model = meta_model.imitate(engine.model)
        for module in model.modules():  # the engine's own come again with the simulation's engine
            compat.drop_forward_hooks(module)
        training = Training(
            make_optimizer=make_optimizer,
            rehearses=True,
            rehearses_update=updates,
            settings=engine.settings,
            balance_coefficient=engine.balance_coefficient,
        )
        return simulate_model(model, engine.plan, work, training), ""
    except Exception as error:  # whatever it is: a chart without a forecast is no reason to end a run
        return None, reason_of(error)


def about(model: nn.Module, traits: ModelTraits, plan: Plan, work: Work) -> dict[str, Any]:
    """What is computed, for the run folder and for figures' titles."""
    return {
        "model_type": traits.model_type,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": plan.device,
        "compute_dtype": plan.compute_dtype,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "document_lengths": list(work.document_lengths),
        "num_targets": work.num_targets,
        "num_micro_batches": work.num_micro_batches,
    }


def sentence(
    micro: MicroBatch, measured_bytes: int | None, foreseen_bytes: int | None, reason: str, unmeasured: str = ""
) -> str:
    """One line: what was rehearsed, measured and foreseen, or why it was not."""
    documents = len(micro.document_lengths)
    what = (
        f"rehearsed the largest micro-batch ({micro.num_tokens:,} tokens in {documents:,} "
        f"document{'s' if documents != 1 else ''}, {micro.num_targets:,} targets): "
    )
    if measured_bytes is None:
        foreseen = f"nothing was foreseen: {reason}" if foreseen_bytes is None else f"{amount(foreseen_bytes)} foreseen"
        return f"{what}it fits, but its memory could not be measured: {unmeasured}; {foreseen}"
    what = f"{what}{amount(measured_bytes)} measured"
    if foreseen_bytes is None:
        return f"{what}; nothing was foreseen: {reason}"
    return f"{what}, {amount(foreseen_bytes)} foreseen ({100 * (foreseen_bytes / measured_bytes - 1):+.1f} %)"
