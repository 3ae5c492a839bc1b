"""Settings of one training, with what each needs: the simulations behind the search, the neighbours and the proposals.

In: a model without memory, a plan to start from, the shape of the data, and the memory there is.  Out: predictions,
each simulated once.  What it keeps true: what is compared with free memory includes the margin, what the allocator
loses, and what the process itself takes; and leaves out what is allocated already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sartor.memory.limits import GROWTH_BYTES, RESERVE_BYTES
from sartor.memory.prediction import PASS, Component, Prediction
from sartor.memory.search import Setting
from sartor.memory.simulate import Known, Training, Work, simulate_model
from sartor.memory.speed import Batch
from sartor.records import Layout, Plan

if TYPE_CHECKING:
    from torch import nn

PROCESS_BYTES = GROWTH_BYTES + RESERVE_BYTES
"""That a run needs beside tensors once it has begun, and that the guard keeps free."""
_STANDING = frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER})


@dataclass(frozen=True, slots=True)
class Shape:
    """The data, as far as memory is concerned."""

    longest_tokens: int
    """Of all documents, which are never cut."""
    largest_batch_tokens: int
    """That an optimizer batch can hold."""
    target_share: float
    """Most of a micro-batch's tokens that are trained."""
    batch: Batch
    num_steps: int | None = None
    """Of the run."""
    document_limit: int | None = None
    """Longer ones the model refuses beside others (`ModelTraits.rope_switch_tokens`)."""

    def work(self, micro_batch_tokens: int, layout: Layout) -> Work:
        """The worst micro-batch.

        In a flat row the number of documents costs simulation time and no memory, so there are few: the longest, and
        what is left in two.  Padded, every row is as long as the longest.

        Example: 600 at once, longest 300: lengths 300, 150, 150; padded 300, 300.
        """
        total = max(self.longest_tokens, min(micro_batch_tokens, self.largest_batch_tokens))
        longest = self.longest_tokens
        if layout is Layout.PADDED:
            lengths = [longest] * max(1, total // longest)
        else:
            rest = total - longest
            part = max(1, min(self.document_limit or rest, -(-rest // 2)))
            lengths = [longest, *(min(part, rest - start) for start in range(0, rest, part))]
        num_targets = min(sum(lengths) - len(lengths), round(total * self.target_share))
        is_whole = total >= self.largest_batch_tokens
        return Work(tuple(lengths), max(0, num_targets), 1 if is_whole else 2)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a device has for a run."""

    available_bytes: int
    """Free now."""
    held_bytes: int = 0
    """Of the model, allocated already."""
    reserve_bytes: int = PROCESS_BYTES
    """Kept free beside what is predicted."""
    host_bytes: int | None = None
    """Of a GPU's host, free for optimizer states; None: not known."""


class MemoryEstimates:
    """Predictions of one training under different settings."""

    def __init__(self, model: nn.Module, plan: Plan, shape: Shape, training: Training, memory: Memory) -> None:
        self.model = model
        self.plan = plan
        self.shape = shape
        self.training = training
        self.memory = memory
        self.is_rough_exact = True
        """Until it is found otherwise: then every prediction is made in full."""
        self._known: dict[Setting, Prediction] = {}
        self._rough: dict[Setting, Prediction] = {}
        self._few_layers: Known = {}

    @property
    def num_simulated(self) -> int:
        """Settings that were simulated so far."""
        return len(self._known.keys() | self._rough.keys())

    def plan_of(self, setting: Setting, num_layers: int) -> Plan:
        """The plan with this setting."""
        some, execution = setting.recomputed_layers, setting.execution
        is_cheap = execution.recomputes_cheap and some < num_layers
        return replace(
            self.plan,
            micro_batch_tokens=setting.micro_batch_tokens,
            gradient_checkpointing=some > 0 or is_cheap,
            recomputed_layers=some if is_cheap or 0 < some < num_layers else None,
            recomputes_cheap=is_cheap,
            loss_chunk_rows=setting.loss_chunk_rows,
            optimizer_implementation=execution.implementation,
            optimizer_states=execution.states,
        )

    def prediction(self, setting: Setting, num_layers: int, *, is_rough: bool = False) -> Prediction:
        """What this setting is predicted to need.

        Args:
            setting: that is asked about.
            num_layers: of the model.
            is_rough: the peak suffices (`simulate_model`).
        """
        if setting.recomputed_layers >= num_layers:  # then nothing is left that could be recomputed cheaply
            setting = replace(setting, execution=replace(setting.execution, recomputes_cheap=False))
        is_rough = is_rough and self.is_rough_exact and setting not in self._known
        found = self._rough if is_rough else self._known
        if setting not in found:
            plan = self.plan_of(setting, num_layers)
            work = self.shape.work(setting.micro_batch_tokens, plan.layout)
            found[setting] = simulate_model(self.model, plan, work, self.training, self._few_layers, is_rough=is_rough)
        return found[setting]

    def needed_bytes(self, prediction: Prediction) -> int:
        """Free memory that it takes: what is not held yet, with the allocator's losses, the margin and the reserve.

        Example: a peak of 1.0 GB of which the model holds 0.4 already, on a CPU: 0.6 x 1.14 + 0.02 + 0.1 = 0.8 GB.
        """
        new = max(0, prediction.peak_bytes - self.memory.held_bytes) * _losses(prediction)
        return int(new) + prediction.overhead_bytes + prediction.margin_bytes + self.memory.reserve_bytes

    def bytes_per_live(self, prediction: Prediction) -> float:
        """By how much more is needed where one byte more is alive."""
        return _losses(prediction) + prediction.margin_bytes / max(1, prediction.peak_bytes)


def _losses(prediction: Prediction) -> float:
    """Bytes of memory for each byte that is alive."""
    return (prediction.resident_bytes - prediction.overhead_bytes) / max(1, prediction.peak_bytes)


def scaled_peak(prediction: Prediction, token_share: float, row_share: float) -> float:
    """About the peak with fewer tokens at once and fewer rows of logits at a time.

    Args:
        prediction: of a step.
        token_share: of its tokens; below 1, gradients of an earlier micro-batch stand there in every pass.
        row_share: of its rows of logits.

    Example: weights, gradients and states of 400 MB, 200 MB of activations, 100 MB of logits; half of the tokens, all
    rows: 600 MB.
    """
    gradients = max(stretch.components.get(Component.GRADIENTS, 0) for stretch in prediction.timeline)
    found = [0.0]
    for stretch in prediction.timeline:
        parts = dict(stretch.components)
        if stretch.phase not in PASS:
            found.append(sum(parts.values()))
            continue
        stands = parts.get(Component.PARAMETERS, 0) + parts.get(Component.OPTIMIZER, 0)
        stands += parts.get(Component.GRADIENTS, 0) if token_share == 1 else gradients
        logits = parts.get(Component.LOGITS, 0)
        moves = sum(size for part, size in parts.items() if part not in _STANDING and part is not Component.LOGITS)
        found.append(stands + row_share * logits + token_share * moves)
    return max(found)


def pass_bytes(prediction: Prediction) -> int:
    """What a micro-batch needs while it goes through, beside weights, gradients and optimizer states.

    Example: 100 MB of activations and 60 MB of logits at the worst moment, of which a buffer of 50 MB stands there from
    the micro-batch before: 110 MB.
    """
    stretches = [stretch for stretch in prediction.timeline if stretch.phase in PASS]
    stands = min((stretch.components.get(Component.LOGITS, 0) for stretch in stretches), default=0)
    sums = [sum(size for part, size in one.components.items() if part not in _STANDING) for one in stretches]
    return max(sums, default=stands) - stands
