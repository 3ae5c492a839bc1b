"""Running out of memory: free, go on with less at once, redo what was lost.

In: an action that may run out of memory, and what makes it need less.  Out: the action's result.  What it keeps true:
the optimizer batch and its gradient stay the same; nothing is skipped; each event is told, and frozen into the plan.

One event of a training batch of micro-batches 1, 2, 3, when memory ends in 2:

    gradients cleared, generators as at the batch's start, memory freed -> 1, 2, 3 again, cut as before
    memory ends again                                                   -> 1a, 1b, 2a, 2b, 3a, 3b
    ... at one document each                                            -> cheap activations are recomputed
    ... and then                                                        -> whole layers are
    ... and then                                                        -> fewer rows of logits at a time

After a first event the same is tried again: a fragmented heap or another program's moment may have been the cause, and
the same cut gives the same bits.  A second one within `AGAIN_EVERY` optimizer batches is not.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sartor.device import empty_cache
from sartor.engine.step import Engine
from sartor.errors import ForeseenMemoryError, OutOfMemoryError, is_out_of_memory
from sartor.records import Incident, Plan
from sartor.run.steps import StepCounter
from sartor.wording import first_line

T = TypeVar("T")

AGAIN_EVERY = 100
"""Optimizer batches after which a single event is taken for a moment's again."""
SMALLEST_LOSS_CHUNK_ROWS = 64
ADVICE = (
    "one document goes through at a time, and what can be recomputed is. Set a smaller max_length, train an adapter "
    "(peft_config), or use a machine with more memory."
)


class Guard(Protocol):
    """Says that memory will run out before it does, where the system would kill and raise nothing."""

    def before(self, num_tokens: int, *, trains: bool) -> None:
        """Called before a micro-batch.

        Raises:
            ForeseenMemoryError: it would not fit.
        """
        ...

    def allocate(self, num_bytes: int, what: str) -> None:
        """Called before something else that will take so many bytes: an optimizer's states, answers.

        Raises:
            ForeseenMemoryError: they would not fit.
        """
        ...

    def relent(self) -> bool:
        """Nothing is left that would need less: whether what was refused last is tried all the same.

        Then it is not refused again.  False where it is known, and not just foreseen, that it cannot fit.
        """
        ...

    def forget(self) -> None:
        """The plan has changed: what was measured holds no longer."""
        ...

    def after(self, num_tokens: int, *, trains: bool) -> None:
        """Called when it went through."""
        ...


class NoGuard:
    """Where the device raises by itself."""

    def before(self, num_tokens: int, *, trains: bool) -> None:
        """Nothing is foreseen."""

    def allocate(self, num_bytes: int, what: str) -> None:
        """Nothing is foreseen."""

    def relent(self) -> bool:
        """Nothing was refused."""
        return False

    def forget(self) -> None:
        """Nothing was measured."""

    def after(self, num_tokens: int, *, trains: bool) -> None:
        """Nothing is measured."""


class Recovery:
    """What a run does when memory runs out, and what it did so far."""

    def __init__(
        self,
        engine: Engine,
        *,
        release: Callable[[], None] = lambda: None,
        tell: Callable[[Incident, Plan], None] = lambda incident, plan: None,
        guard: Guard | None = None,
        steps: StepCounter | None = None,
    ) -> None:
        """Args:
        engine: whose plan becomes finer.
        release: gives unused memory back to the system, as far as that can be done.
        tell: is called with each event and the plan that holds from then on.
        guard: foresees; None: nothing does.
        steps: counts the run's optimizer steps, for messages; None: a new one, as outside of training.
        """
        self.engine = engine
        self.guard: Guard = guard or NoGuard()
        self.steps = steps or StepCounter()
        self.incidents: list[Incident] = []
        self._release = release
        self._tell = tell
        self._tried_again_at: int | None = None
        self._was_foreseen = False

    def retry(
        self,
        phase: str,
        action: Callable[[], T],
        less: Callable[[], str | None],
        undo: Callable[[], None] | None = None,
        advice: str = ADVICE,
    ) -> T:
        """`action`, again and again with less at once, until it goes through.

        Args:
            phase: what is being done, for messages: "forward or backward".
            action: may run out of memory; it starts from the beginning each time.
            less: makes the action need less, and says how; None where there is nothing left to do.
            undo: takes back what a failed action did.
            advice: for the error: why nothing is left to do, and what the user can.

        Raises:
            OutOfMemoryError: nothing is left to do.
        """
        while True:
            try:
                return action()
            except Exception as error:
                if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                    raise
                self._was_foreseen = isinstance(error, ForeseenMemoryError)
                cause = first_line(error)[:300]
            # Out of the handler: the exception, its traceback and the tensors in its frames are gone.
            if undo is not None:
                undo()
            self._free()
            remedy = less()
            if remedy is None and self._was_foreseen and self.guard.relent():
                remedy = "tried all the same, since nothing is left that would need less"
            if remedy is None:
                raise OutOfMemoryError(
                    f"memory ran out in {phase}{self._of_step()} ({cause}), and nothing is left that would need "
                    f"less: {advice}"
                )
            incident = Incident(self.steps.current, phase, cause, remedy)
            self.incidents.append(incident)
            self.engine.replan(
                dataclasses.replace(self.engine.plan, incidents=(*self.engine.plan.incidents, incident.sentence))
            )
            self._tell(incident, self.engine.plan)
            self.guard.forget()

    def try_again(self) -> str | None:
        """A remedy: the same again, where it was not tried again lately, and it was no forecast."""
        if self._was_foreseen:
            return None
        step = self.steps.current
        if self._tried_again_at is not None and step < self._tried_again_at + AGAIN_EVERY:
            return None
        self._tried_again_at = step
        return "memory freed, the same again"

    def train_with_less(self, num_tokens: int, num_documents: int) -> str | None:
        """A remedy for forward and backward: half the tokens, down to one document; then recomputation; then the loss.

        Args:
            num_tokens: of the micro-batch that did not fit.
            num_documents: that it holds.
        """
        plan = self.engine.plan
        if num_documents > 1:
            tokens = max(1, min(plan.micro_batch_tokens, num_tokens) // 2)
            self._replan("micro_batch_tokens", tokens)
            return f"at most {tokens:,} tokens at once in place of {plan.micro_batch_tokens:,}"
        return self.recompute() or self.shrink_loss(num_tokens)

    def recompute(self) -> str | None:
        """A remedy: activations are recomputed in the backward pass, where the architecture can and does not yet.

        First what is cheap to compute again, then whole layers.
        """
        plan = self.engine.plan
        if plan.gradient_checkpointing and plan.recomputed_layers is not None:
            self._replan("recomputed_layers", None, recomputes_cheap=False)
            return "the activations of every layer are recomputed from here on"
        if plan.gradient_checkpointing or not self.engine.can_recompute:
            return None
        if plan.compile_backend is not None:  # a program's operations are not seen one by one
            self._replan("gradient_checkpointing", True)
            return "the activations of every layer are recomputed from here on"
        self._replan("gradient_checkpointing", True, recomputed_layers=0, recomputes_cheap=True)
        return "activations that are cheap to compute again are recomputed from here on"

    def shrink_loss(self, num_tokens: int) -> str | None:
        """A remedy: half the rows of logits at a time, of those that so many tokens can have."""
        rows = min(self.engine.plan.loss_chunk_rows, num_tokens)
        if rows <= SMALLEST_LOSS_CHUNK_ROWS:
            return None
        self._replan("loss_chunk_rows", max(SMALLEST_LOSS_CHUNK_ROWS, rows // 2))
        return f"{self.engine.plan.loss_chunk_rows} rows of logits at a time in place of {rows}"

    def evaluate_with_less(self, num_tokens: int, num_documents: int) -> str | None:
        """A remedy for a pass without gradients: half the tokens, down to one document; then the loss.

        The cut that training uses stays as it is.
        """
        plan = self.engine.plan
        if num_documents > 1:
            tokens = max(1, min(plan.evaluation_tokens or plan.micro_batch_tokens, num_tokens) // 2)
            self._replan("evaluation_tokens", tokens)
            return f"at most {tokens:,} tokens at once in evaluations"
        return self.shrink_loss(num_tokens)

    def _replan(self, field: str, value: int | None, **more: int) -> None:
        plan = self.engine.plan
        reasons = {**plan.reasons, field: self._when()}
        changes: dict[str, Any] = {field: value, **more}
        if field in ("gradient_checkpointing", "recomputed_layers"):
            changes["pass_bytes"] = None  # it was foreseen for other activations
        self.engine.replan(dataclasses.replace(plan, reasons=reasons, **changes))

    def _when(self) -> str:
        step = self.steps.current
        return f"memory ran out at step {step}" if step else "memory ran out before the first step"

    def _of_step(self) -> str:
        return f" of step {self.steps.current}" if self.steps.current else ""

    def _free(self) -> None:
        gc.collect()
        empty_cache(self.engine.device)
        self._release()
