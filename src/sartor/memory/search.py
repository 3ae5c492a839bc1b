"""The fastest settings that fit: how much goes through the model at once, what is recomputed, how the loss is cut.

In: what each setting needs (simulated on demand) and how long it takes (estimated), and the memory there is.  Out: the
setting to take.  What it keeps true: only what leaves the mathematics alone is chosen; nothing is chosen that is not
predicted to fit; and few settings are simulated.

How few: where the preferred setting fits, that one.  Else an estimate, which the caller makes from a few simulations,
orders the settings, and the one that is taken is simulated itself.

Example: 1,024 tokens at once need 2.0 GB, 256 need 1.1 GB and 1.5 GB is free: 512 are estimated to need 1.4 GB,
simulated, and taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

TOLERATED_SLOWNESS = 1.02
"""Among settings this close to the fastest, the one with fewer tokens at once is taken: it needs less."""
DOUBT = 1.02
"""An estimate may be so much too high: what is just over what there is gets simulated too."""
SMALLEST_CHUNK_ROWS = 64
LAYER_STEPS = 8
"""Recomputed layers are chosen in so many steps."""
_TOKENS = tuple(base << power for power in range(5, 18) for base in (2, 3))


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """How the same is computed: what is chosen and is no number."""

    recomputes_cheap: bool = False
    """In layers that are not recomputed whole, cheap operations are."""
    implementation: str | None = None
    """Of the optimizer's step: "fused", "foreach" or "for-loop"; None: the optimizer has no others."""
    states: str = "device"
    """Where the optimizer's states live between updates: "device" or "host"."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What may be chosen freely."""

    micro_batch_tokens: int
    recomputed_layers: int
    """The first so many layers' activations are computed again in the backward pass."""
    loss_chunk_rows: int
    execution: ExecutionOptions = ExecutionOptions()


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What there is to choose from; a single value where the user has chosen, or the architecture cannot."""

    tokens: tuple[int, ...]
    """Ascending, as the others."""
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    executions: tuple[ExecutionOptions, ...] = (ExecutionOptions(),)
    """The fastest first, the leanest last."""

    @property
    def leanest(self) -> Setting:
        """The setting that needs least."""
        return Setting(self.tokens[0], self.layers[-1], self.rows[0], self.executions[-1])


def search_space(
    *,
    tokens: int | None,
    layers: int | None,
    rows: int | None,
    smallest_tokens: int,
    largest_tokens: int,
    num_layers: int,
    largest_rows: int,
    executions: tuple[ExecutionOptions, ...] = (ExecutionOptions(),),
) -> SearchSpace:
    """What is left to choose.

    Args:
        tokens: at once, if the user has chosen.
        layers: that are recomputed, if the user has chosen or nothing can be recomputed.
        rows: of logits at a time, if the user has chosen.
        smallest_tokens: of a micro-batch: the longest document, which is never cut.
        largest_tokens: worth trying.
        num_layers: of the model.
        largest_rows: worth trying.
        executions: that are possible and that the user has left open, the fastest first.
    """
    at_once = {smallest_tokens, max(smallest_tokens, largest_tokens)}
    at_once |= {count for count in _TOKENS if smallest_tokens < count < largest_tokens}
    recomputed = {0, num_layers, *(num_layers * step // LAYER_STEPS for step in range(1, LAYER_STEPS))}
    halves = {max(SMALLEST_CHUNK_ROWS, largest_rows >> power) for power in range(12)}
    return SearchSpace(
        (tokens,) if tokens is not None else tuple(sorted(at_once)),
        (layers,) if layers is not None else tuple(sorted(recomputed)),
        (rows,) if rows is not None else tuple(sorted({largest_rows, *(n for n in halves if n <= largest_rows)})),
        executions,
    )


def search(
    free: SearchSpace,
    needed: Callable[[Setting], int],
    seconds: Callable[[Setting], float],
    available_bytes: int,
    about: Callable[[Setting, int], float],
) -> tuple[Setting, bool]:
    """The setting to take, and whether it fits; where nothing does, the one that needs least.

    Args:
        free: what there is to choose from.
        needed: bytes of a setting; simulates, and should remember.
        seconds: of a step.
        available_bytes: that it may need.
        about: estimates what a setting needs, given the most tokens at once that are looked at.
    """
    preferred = _preferred(
        free.tokens, Setting(free.tokens[0], free.layers[0], free.rows[-1], free.executions[0]), seconds
    )
    if needed(preferred) <= available_bytes:
        return preferred, True
    is_hopeful = about(free.leanest, preferred.micro_batch_tokens) <= available_bytes
    if not is_hopeful and needed(free.leanest) > available_bytes:
        return free.leanest, False
    tokens = tuple(count for count in free.tokens if count <= preferred.micro_batch_tokens)
    too_much: list[Setting] = []
    for rows in (free.rows[-1:], free.rows):  # fewer rows of logits only where all else does not suffice
        box = SearchSpace(tokens, free.layers, rows, free.executions)
        promising = [one for one in _settings(box) if about(one, tokens[-1]) / DOUBT <= available_bytes]
        for fast in sorted(promising, key=seconds):
            setting = _fewest_tokens(tokens, fast, seconds)
            if any(_needs_no_less(setting, other) for other in too_much):
                continue
            if needed(setting) <= available_bytes:
                return setting, True
            too_much.append(setting)
    return free.leanest, needed(free.leanest) <= available_bytes


def _fewest_tokens(tokens: Sequence[int], fast: Setting, seconds: Callable[[Setting], float]) -> Setting:
    """The setting with the fewest tokens at once that is about as fast."""
    fewer = (_with_tokens(fast, count) for count in tokens if count <= fast.micro_batch_tokens)
    return next(setting for setting in fewer if seconds(setting) <= TOLERATED_SLOWNESS * seconds(fast))


def _needs_no_less(setting: Setting, other: Setting) -> bool:
    return (
        setting.execution == other.execution
        and setting.micro_batch_tokens >= other.micro_batch_tokens
        and setting.recomputed_layers <= other.recomputed_layers
        and setting.loss_chunk_rows >= other.loss_chunk_rows
    )


def _preferred(tokens: Sequence[int], like: Setting, seconds: Callable[[Setting], float]) -> Setting:
    """The fewest tokens at once that are about as fast as any."""
    settings = [_with_tokens(like, count) for count in tokens]
    best = min(map(seconds, settings))
    return next(setting for setting in settings if seconds(setting) <= TOLERATED_SLOWNESS * best)


def _settings(box: SearchSpace) -> Iterable[Setting]:
    return (Setting(*values) for values in itertools.product(box.tokens, box.layers, box.rows, box.executions))


def _with_tokens(setting: Setting, tokens: int) -> Setting:
    return replace(setting, micro_batch_tokens=tokens)
