"""The memory of real steps, counted by others: torch's allocator through its profiler, and every malloc of the process.

Nothing of `sartor.memory` is used here: what a prediction is compared with must not share its instrument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sartor.engine.precision import autocast
from sartor.engine.step import Engine
from sartor.engine.traits import evaluating, read_traits
from sartor.records import EngineSettings, Example, Plan
from sartor.run.loop import OptimizerBatch
from sartor.run.stepper import EngineStepper, Updater


def examples(lengths: Sequence[int], num_targets: int, vocabulary_size: int) -> list[Example]:
    """Random documents; the first `num_targets` tokens that can be targets are."""
    generator = torch.Generator().manual_seed(0)
    found, left = [], num_targets
    for length in lengths:
        ids = torch.randint(0, vocabulary_size, (length,), generator=generator).tolist()
        trained = min(left, length - 1)
        left -= trained
        found.append(Example(ids, [-100, *ids[1 : trained + 1], *([-100] * (length - 1 - trained))]))
    assert left == 0, "more targets than the documents have"
    return found


@torch.no_grad()
def with_first_choices(model: Any, batch: Sequence[Example], compute_dtype: torch.dtype) -> list[Example]:
    """The same documents, in which what is trained is what the model finds likeliest now."""
    found = []
    with evaluating(model), autocast(torch.device("cpu"), compute_dtype):
        for example in batch:
            choices = model(input_ids=torch.tensor([example.input_ids])).logits[0].argmax(-1).tolist()
            likeliest = [choices[0], *choices[:-1]]
            labels = [old if old == -100 else new for old, new in zip(example.labels, likeliest, strict=True)]
            found.append(dataclasses.replace(example, labels=labels))
    return found


def stepper(
    model: nn.Module,
    plan: Plan,
    settings: EngineSettings,
    optimizer: torch.optim.Optimizer,
    *,
    balance_coefficient: float = 0.0,
) -> tuple[Engine, EngineStepper]:
    """What a training drives: engine, clipping, update, schedule."""
    engine = Engine(model, read_traits(model), plan, settings)
    engine.balance_coefficient = balance_coefficient
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return engine, EngineStepper(engine, Updater(optimizer, scheduler, engine, settings.max_grad_norm, False))


def take_steps(engine: Engine, step: EngineStepper, batch: Sequence[Example], number: int = 2) -> None:
    """Whole optimizer steps, as `run.loop` takes them."""
    with engine.running():
        for _ in range(number):
            step.clip(step.gradients(OptimizerBatch(tuple(batch), tuple(range(len(batch))), (len(batch),))))
            step.update()
            step.schedule()


def held_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


class AllocatorPeak:
    """The largest sum of c10's allocations while the block lasts, from the profiler's `[memory]` events."""

    def __enter__(self) -> AllocatorPeak:
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        self.num_bytes = peak
        self.left_bytes = live
        self.num_events = len(events)
