"""What keeps a run going: its memory guard, the plan that grows finer, and names for rows that cannot be trained.

In: a session and its engine.  Out: the run's `Recovery` and its policy for numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sartor.device import kind_of
from sartor.engine.step import Engine
from sartor.errors import DiskFullError, RunFolderError
from sartor.memory import heap
from sartor.memory.guard import MemoryGuard, Needs
from sartor.memory.plan import ACTIVATION_VALUES_PER_HIDDEN, write_plan
from sartor.records import Incident, Plan
from sartor.run import saving
from sartor.run.recover import Recovery
from sartor.run.settings import RunSettings
from sartor.run.stepper import NonFinitePolicy, rows_by_number
from sartor.run.steps import StepCounter

_ROWS_SHOWN = 16


def recovery_for(
    engine: Engine, steps: StepCounter, say: Callable[[str], None], freeze: Callable[[Plan], None] | None
) -> Recovery:
    """The recovery of a run, or of an evaluation outside of training.

    Args:
        engine: that computes.
        steps: counts the run's optimizer steps.
        say: tells the user one thing.
        freeze: makes a plan the run's; None: outside of training.
    """
    guard = MemoryGuard(_needs(engine)) if kind_of(engine.device).is_host else None

    def tell(incident: Incident, plan: Plan) -> None:
        say(incident.sentence)
        if freeze is not None:
            freeze(plan)

    return Recovery(engine, release=heap.give_back, tell=tell, guard=guard, steps=steps)


def freeze(plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
    """Write the plan that holds from here on into a run's folder; a disk that is full does not end the run."""
    try:
        with saving.explained(folder):
            write_plan(plan, folder / saving.PLAN_NAME)
    except RunFolderError as error:
        say(f"the run goes on, but its plan could not be written: {error}")


def _needs(engine: Engine) -> Needs:
    traits = engine.traits

    def missing_bytes() -> int:
        """Of gradients that are not there yet."""
        return sum(p.nbytes for p in engine.model.parameters() if p.requires_grad and p.grad is None)

    def fixed_bytes(num_tokens: int, trains: bool) -> int:
        """Two copies of a chunk's logits; the gradients that the backward pass is about to make."""
        rows = min(num_tokens, engine.plan.loss_chunk_rows)
        logits = 2 * 4 * rows * traits.vocabulary_size
        return logits + (missing_bytes() if trains else 0)

    def token_bytes(trains: bool) -> int:
        layer = 4 * traits.hidden_size * ACTIVATION_VALUES_PER_HIDDEN
        if not trains:
            return layer
        if not engine.plan.gradient_checkpointing:
            return layer * traits.num_layers
        some = engine.plan.recomputed_layers
        num_kept = 0 if some is None else max(0, traits.num_layers - some)
        if engine.plan.recomputes_cheap:  # products are kept: about half
            num_kept = (num_kept + 1) // 2
        return layer * (1 + num_kept) + 4 * traits.hidden_size * (traits.num_layers - num_kept)

    def foreseen_bytes(num_tokens: int, trains: bool) -> int | None:
        """By the plan's simulation, in proportion to the tokens."""
        plan = engine.plan
        if not trains or plan.pass_bytes is None or not plan.pass_tokens:
            return None
        return plan.pass_bytes * num_tokens // plan.pass_tokens

    return Needs(fixed_bytes, token_bytes, lambda: engine.plan.attention == "eager", foreseen_bytes, missing_bytes)


def non_finite_policy(settings: RunSettings, places: Any, say: Callable[[str], None]) -> NonFinitePolicy:
    """What `on_non_finite` asks for; `places` as in `rows_named`."""
    return NonFinitePolicy(settings.on_non_finite == "skip", lambda keys: rows_named(places, keys), say)


def full_disk_policy(settings: RunSettings, say: Callable[[str], None]) -> Callable[[DiskFullError], None] | None:
    """What becomes of a line of metrics that has no room: None, where the run is to stop; else said, the first time."""
    if settings.on_full_disk != "continue":
        return None
    told: list[str] = []

    def tell(error: DiskFullError) -> None:
        if not told:
            told.append(str(error))
            say(f"{error} The run goes on, and its metrics wait for room (on_full_disk='continue').")

    return tell


def rows_named(places: Any, keys: Sequence[int]) -> str:
    """Rows of the training data in words, for messages: by file and line, where `places` knows them (or is None)."""
    if places is None or any(key >= len(places) for key in keys):  # a stream's rows have no number in a table
        return rows_by_number(keys)
    named = list(dict.fromkeys(places.where(key) for key in keys))
    return "; ".join(named[:_ROWS_SHOWN]) + (
        f" and {len(named) - _ROWS_SHOWN} more" if len(named) > _ROWS_SHOWN else ""
    )


def summary(plan: Plan | None, say: Callable[[str], None], *, num_skipped: int, num_spikes: int) -> dict[str, float]:
    """What went wrong and was gone on from, as metrics, and said aloud; nothing where nothing did."""
    counts = {
        "out_of_memory_events": len(plan.incidents) if plan is not None else 0,
        "skipped_batches": num_skipped,
        "loss_spikes": num_spikes,
    }
    found = {name: float(count) for name, count in counts.items() if count}
    if found:
        parts = ", ".join(f"{name.replace('_', ' ')}: {count:.0f}" for name, count in found.items())
        say(f"during this run, {parts}.")
    return found
