"""What a run needs to survive: its memory guard, the plan that grows finer, and names for rows that cannot be trained.

In: a trainer and its engine.  Out: the run's `Recovery` and its policy for numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.engine.step import Engine
from sartor.errors import RunFolderError
from sartor.memory import limits
from sartor.memory.guard import MemoryGuard, Needs
from sartor.memory.plan import ACTIVATION_VALUES_PER_HIDDEN, write_plan
from sartor.records import Incident, Plan
from sartor.run.recover import Recovery
from sartor.run.stepper import NonFinitePolicy, rows_by_number
from sartor.trainer import saving

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer


def recovery_for(trainer: SFTTrainer, engine: Engine) -> Recovery:
    """The recovery of a run, or of an evaluation outside of training."""
    guard = MemoryGuard(_needs(engine)) if engine.device.type == "cpu" else None

    def tell(incident: Incident, plan: Plan) -> None:
        trainer.say(incident.sentence)
        if guard is not None:
            guard.forget()
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

    def fixed_bytes(num_tokens: int, trains: bool) -> int:
        """Two copies of a chunk's logits; the gradients that the backward pass is about to make."""
        rows = min(num_tokens, engine.plan.loss_chunk_rows)
        logits = 2 * 4 * rows * traits.vocabulary_size
        missing = (p for p in engine.model.parameters() if p.requires_grad and p.grad is None)
        return logits + (sum(parameter.nbytes for parameter in missing) if trains else 0)

    def token_bytes(trains: bool) -> int:
        layer = 4 * traits.hidden_size * ACTIVATION_VALUES_PER_HIDDEN
        if not trains:
            return layer
        if engine.plan.gradient_checkpointing:
            return layer + 4 * traits.hidden_size * traits.num_layers
        return layer * traits.num_layers

    return Needs(fixed_bytes, token_bytes, lambda: engine.plan.attention == "eager")


def non_finite_policy(trainer: SFTTrainer) -> NonFinitePolicy:
    """What `on_non_finite` asks for."""
    return NonFinitePolicy(trainer.args.on_non_finite == "skip", lambda keys: rows_named(trainer, keys), trainer.say)


def rows_named(trainer: SFTTrainer, keys: Sequence[int]) -> str:
    """Rows of the training data in words, for messages."""
    return rows_by_number(keys)
