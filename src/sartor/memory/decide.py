"""The decision about a run's memory: search, neighbours, and what would make it fit.

In: a `MemoryEstimates`, what the user has chosen, rates.  Out: a frozen `Decision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from sartor.device import kind_of
from sartor.memory.estimates import MemoryEstimates, scaled_peak
from sartor.memory.prediction import Prediction, Training
from sartor.memory.rates import Rates
from sartor.memory.search import SMALLEST_CHUNK_ROWS, ExecutionOptions, SearchSpace, Setting, search
from sartor.memory.speed import Sizes, step_seconds
from sartor.optim import registry
from sartor.optim.transaction import PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Option:
    """One way to execute the run, and what it costs."""

    label: str
    setting: Setting
    needed_bytes: int
    """Of free memory, margin and reserve included."""
    seconds: float
    """Of a step, estimated."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change of the mathematics that the user may want."""

    name: str
    how: str
    """What to set."""
    cost: str
    """What it does to the training."""
    needed_bytes: int
    seconds: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What is taken, and why."""

    chosen: Option
    prediction: Prediction
    fits: bool
    available_bytes: int
    rates: Rates
    neighbours: tuple[Option, ...] = ()
    unasked: Option | None = None
    """What would be taken had the user chosen nothing; None: nothing was chosen, or it is the same."""
    proposals: tuple[Proposal, ...] = ()
    num_steps: int | None = None
    device_batch: tuple[int, int] = (0, 0)
    """`per_device_train_batch_size` and `gradient_accumulation_steps`."""
    host_bytes: int = 0
    """Of a GPU's host, that optimizer states take."""
    num_simulated: int = 0
    notes: tuple[str, ...] = ()

    @property
    def missing_bytes(self) -> int:
        """By which it does not fit; 0 where it does."""
        return max(0, self.chosen.needed_bytes - self.available_bytes)

    @property
    def run_seconds(self) -> float | None:
        """Of the whole run, estimated."""
        return None if self.num_steps is None else self.num_steps * self.chosen.seconds


def state_bytes_of(training: Training, sizes: Sizes) -> int:
    """Of an optimizer's states, all together; 0 for optimizers whose states have one place only."""
    each = registry.state_bytes(training.optimizer, training.optimizer_options) or 0
    return each * sizes.trained_weights


def seconds_of(estimates: MemoryEstimates, sizes: Sizes, rates: Rates, setting: Setting) -> float:
    """Of a step of a training under a setting, estimated.

    Args:
        estimates: of the training.
        sizes: of its model.
        rates: of the device.
        setting: that is asked about.
    """
    plan = estimates.plan_of(setting, sizes.num_layers)
    return step_seconds(
        sizes, estimates.shape.batch, rates, plan, state_bytes=state_bytes_of(estimates.training, sizes)
    )


class Decider:
    """Chooses and compares settings of one training."""

    def __init__(self, estimates: MemoryEstimates, free: SearchSpace, sizes: Sizes, rates: Rates) -> None:
        self._estimates = estimates
        self._free = free
        self._sizes = sizes
        self._rates = rates

    def seconds(self, setting: Setting) -> float:
        """Of a step under a setting."""
        return seconds_of(self._estimates, self._sizes, self._rates, setting)

    def saved(self, execution: ExecutionOptions) -> int:
        """What the optimizer's options spare, at most: its states, and temporaries of a piece of the update."""
        spared = self._host_bytes(execution)
        if execution.implementation == "for-loop":  # foreach has two temporaries as large as a piece
            spared += min(4 * self._sizes.trained_weights, 2 * PIECE_BYTES)
        return spared

    def needed(self, setting: Setting) -> int:
        """Free memory that a setting takes; of the first one, which is most often the last, all else too."""
        estimates = self._estimates
        is_rough = estimates.num_simulated > 0
        return estimates.needed_bytes(estimates.prediction(setting, self._sizes.num_layers, is_rough=is_rough))

    def _host_bytes(self, execution: ExecutionOptions) -> int:
        """What the host's memory takes of the optimizer's states."""
        return state_bytes_of(self._estimates.training, self._sizes) if execution.states == "host" else 0

    def _searched(self, free: SearchSpace) -> tuple[Setting, bool]:
        available = self._estimates.memory.available_bytes
        return search(free, self.needed, self.seconds, available, partial(self._about, free))

    def _about(self, free: SearchSpace, setting: Setting, most_tokens: int) -> float:
        """About what a setting needs, from no, all and cheap recomputation of the most tokens at once.

        What grows with tokens and with rows of logits is told apart by component; layers lie on the line between none
        and all.  So three simulations order all settings.
        """
        num_layers = self._sizes.num_layers
        rows, plain = free.rows[-1], replace(free.executions[0], recomputes_cheap=setting.execution.recomputes_cheap)
        share = setting.recomputed_layers / num_layers
        total = 0.0
        for layers, part in ((0, 1 - share), (num_layers, share)):
            if part:
                top = Setting(most_tokens, layers, rows, plain)
                estimates = self._estimates
                prediction = estimates.prediction(top, num_layers, is_rough=estimates.num_simulated > 0)
                peak = scaled_peak(prediction, setting.micro_batch_tokens / most_tokens, setting.loss_chunk_rows / rows)
                total += part * (
                    self.needed(top) + estimates.bytes_per_live(prediction) * (peak - prediction.peak_bytes)
                )
        return total - self.saved(setting.execution) + self.saved(plain)

    def decide(self, *, compares: bool) -> Decision:
        """Search; and where wanted, simulate the neighbours of what fits too."""
        estimates = self._estimates
        available = estimates.memory.available_bytes
        setting, fits = self._searched(self._free)
        rough = self.needed(setting)
        prediction = estimates.prediction(setting, self._sizes.num_layers)
        if self.needed(setting) != rough:
            estimates.is_rough_exact = False
            setting, fits = self._searched(self._free)
            prediction = estimates.prediction(setting, self._sizes.num_layers)
        chosen = self.option("chosen", setting)
        return Decision(
            chosen,
            prediction,
            fits and chosen.needed_bytes <= available,
            available,
            self._rates,
            neighbours=self.neighbours(setting) if compares and fits else (),
            num_steps=estimates.shape.num_steps,
            host_bytes=self._host_bytes(setting.execution),
            num_simulated=estimates.num_simulated,
            notes=prediction.notes,
        )

    def unasked(self, free: SearchSpace, chosen: Setting) -> Option | None:
        """What is taken where this is free; None: the same."""
        setting, _ = self._searched(free)
        return None if setting == chosen else self.option("left to the plan", setting)

    def option(self, label: str, setting: Setting) -> Option:
        """A setting with its costs."""
        return Option(label, setting, self.needed(setting), self.seconds(setting))

    def neighbours(self, chosen: Setting) -> tuple[Option, ...]:
        """Settings one change away, those that the user decided included: what they would cost."""
        num_layers, longest = self._sizes.num_layers, self._estimates.shape.longest_tokens
        most = max(longest, self._estimates.shape.largest_batch_tokens)
        tokens, rows = chosen.micro_batch_tokens, chosen.loss_chunk_rows
        changed: list[tuple[str, Setting]] = []
        for count in (tokens // 2, tokens * 2):
            count = min(max(count, longest), most)
            if count != tokens and count not in [setting.micro_batch_tokens for _, setting in changed]:
                changed.append((f"{count:,} tokens at once", replace(chosen, micro_batch_tokens=count)))
        known = set() if chosen.execution.recomputes_cheap else {chosen.recomputed_layers}
        for layers in sorted({0, num_layers // 2, num_layers} - known):
            if layers == 0 or self._free.layers[-1] > 0:
                kept = replace(chosen.execution, recomputes_cheap=False)
                changed.append(
                    (recomputation(layers, num_layers), replace(chosen, recomputed_layers=layers, execution=kept))
                )
        if (
            any(execution.recomputes_cheap for execution in self._free.executions)
            and not chosen.execution.recomputes_cheap
        ):
            cheap = replace(chosen.execution, recomputes_cheap=True)
            changed.append((CHEAP, replace(chosen, recomputed_layers=0, execution=cheap)))
        if rows // 2 >= SMALLEST_CHUNK_ROWS:
            changed.append((f"{rows // 2:,} rows of logits at a time", replace(chosen, loss_chunk_rows=rows // 2)))
        options = [self.option(label, setting) for label, setting in changed]
        return (*options, *self._other_optimizers(chosen))

    def _other_optimizers(self, chosen: Setting) -> Sequence[Option]:
        """The same update by another implementation, up to rounding; and with its states at the other place."""
        estimates, execution = self._estimates, chosen.execution
        name, device = estimates.training.optimizer, estimates.plan.device.partition(":")[0]
        if registry.state_bytes(name) is None or estimates.training.make_optimizer is not None:
            return []
        changed = [
            (f"--optimizer_implementation {other}", replace(execution, implementation=other))
            for other in registry.IMPLEMENTATIONS
            if execution.implementation is not None
            and other != execution.implementation
            and (other != "fused" or device in registry.named(name).fused_on)
        ]
        if not kind_of(estimates.plan.device).is_host:
            place = "host" if execution.states == "device" else "device"
            changed.append((f"optimizer states on the {place}", replace(execution, states=place)))
        return [self.option(label, replace(chosen, execution=other)) for label, other in changed]


CHEAP = "cheap operations recomputed"


def recomputation(layers: int, num_layers: int, *, recomputes_cheap: bool = False) -> str:
    """In words."""
    if recomputes_cheap and layers < num_layers:
        return CHEAP if layers == 0 else f"{layers} of {num_layers} layers recomputed, and {CHEAP} in the others"
    if layers == 0:
        return "nothing recomputed"
    return "every layer recomputed" if layers == num_layers else f"{layers} of {num_layers} layers recomputed"
