"""What keeps a run going: its memory guard, the plan that grows finer, and names for rows that cannot be trained.

In: a trainer and its engine.  Out: the run's `Recovery` and its policy for numbers that are not finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.device import kind_of
from sartor.engine.step import Engine
from sartor.errors import DiskFullError, RunFolderError
from sartor.memory import limits
from sartor.memory.guard import MemoryGuard, Needs
from sartor.memory.plan import ACTIVATION_VALUES_PER_HIDDEN, write_plan
from sartor.records import Incident, Plan
from sartor.run import checkpoint, saving
from sartor.run.recover import Recovery
from sartor.run.stepper import NonFinitePolicy, rows_by_number

_ROWS_SHOWN = 16

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer


def recovery_for(trainer: SFTTrainer, engine: Engine) -> Recovery:
    """The recovery of a run, or of an evaluation outside of training."""
    guard = MemoryGuard(_needs(engine)) if kind_of(engine.device).is_host else None

    def tell(incident: Incident, plan: Plan) -> None:
        trainer.say(incident.sentence)
        if trainer.is_in_train:
            freeze(trainer, plan)

    return Recovery(engine, release=limits.give_back, tell=tell, guard=guard)


def freeze(trainer: SFTTrainer, plan: Plan) -> None:
    """Make this the run's plan from here on, in its folder too; a disk that is full does not end the run."""
    trainer.plan = plan
    try:
        with saving.explained(trainer.args.output_dir):
            write_plan(plan, Path(trainer.args.output_dir) / saving.PLAN_NAME)
    except RunFolderError as error:
        trainer.say(f"the run goes on, but its plan could not be written: {error}")


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


def non_finite_policy(trainer: SFTTrainer) -> NonFinitePolicy:
    """What `on_non_finite` asks for."""
    return NonFinitePolicy(trainer.args.on_non_finite == "skip", lambda keys: rows_named(trainer, keys), trainer.say)


def full_disk_policy(trainer: SFTTrainer) -> Callable[[DiskFullError], None] | None:
    """What becomes of a line of metrics that has no room: None, where the run is to stop; else said, the first time."""
    if trainer.args.on_full_disk != "continue":
        return None
    told: list[str] = []

    def tell(error: DiskFullError) -> None:
        if not told:
            told.append(str(error))
            trainer.say(f"{error} The run goes on, and its metrics wait for room (on_full_disk='continue').")

    return tell


def rows_named(trainer: SFTTrainer, keys: Sequence[int]) -> str:
    """Rows of the training data in words, for messages: by file and line, where that is known."""
    places = trainer.preparation.places.get("train")
    if places is None or any(key >= len(places) for key in keys):  # a stream's rows have no number in a table
        return rows_by_number(keys)
    named = list(dict.fromkeys(places.where(key) for key in keys))
    return "; ".join(named[:_ROWS_SHOWN]) + (
        f" and {len(named) - _ROWS_SHOWN} more" if len(named) > _ROWS_SHOWN else ""
    )


def last_checkpoint(trainer: SFTTrainer, resumed_from: Path | None) -> Path | None:
    """For the error that ends a run: from where one can go on; None: from nowhere.

    Args:
        trainer: of the run.
        resumed_from: the checkpoint that it went on from, which may be in another folder.
    """
    if trainer.checkpoints is None:
        return resumed_from
    with contextlib.suppress(RunFolderError):  # what the caller must see is the error
        trainer.checkpoints.wait()
    folder = Path(trainer.args.output_dir)
    ours = [path for path in checkpoint.in_order(folder) if checkpoint.run_of(path) == trainer.checkpoints.run]
    return ours[-1] if ours else resumed_from


def summary(trainer: SFTTrainer, *, num_skipped: int, num_spikes: int) -> dict[str, float]:
    """What went wrong and was gone on from, as metrics, and said aloud; nothing where nothing did."""
    counts = {
        "out_of_memory_events": len(trainer.plan.incidents) if trainer.plan is not None else 0,
        "skipped_batches": num_skipped,
        "loss_spikes": num_spikes,
    }
    found = {name: float(count) for name, count in counts.items() if count}
    if found:
        parts = ", ".join(f"{name.replace('_', ' ')}: {count:.0f}" for name, count in found.items())
        trainer.say(f"during this run, {parts}.")
    return found
