"""On a CPU nothing is raised before the system kills: this raises first, before a micro-batch that would not fit.

In: the tokens of the micro-batch that comes next.  Out: nothing, or a MemoryError that recovery takes as any other.

Where the plan was simulated, a micro-batch needs what was predicted, in proportion to its tokens, times what the heap
takes for a byte; and where more came and went than that, so much more per token from then on.  What there is, and what
stays free, is `limits`' for plan and guard alike, so that the guard does not refuse what the plan chose.

Elsewhere: a part that the plan fixes (chunks of logits, gradients that are not there yet), and a part per token.  The
latter is a rule of thumb until a micro-batch of at least a quarter of the tokens has made the heap grow: then it is the
largest that was measured.  Smaller ones say little: what they need is mostly not per token.

One measurement: before a micro-batch of 2,048 tokens the heap uses 1.0 GB and keeps 0.3 GB unused; after it the process
has grown by 0.9 GB, and 0.5 GB of gradients are new.  So 0.3 + 0.9 - 0.5 = 0.7 GB came and went, of which 0.5 GB
were logits: 0.1 MB per token.

What an optimizer's first step and answers to questions take is counted, not learnt.  Where it is certain that they do
not fit, they are not tried: an error that says so is better than a process that is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sartor.errors import ForeseenMemoryError
from sartor.memory import heap, limits
from sartor.memory.heap import Heap, Surplus
from sartor.memory.limits import RESERVE_BYTES, RESIDENT_PER_LIVE

TELLING_SHARE = 4
"""A micro-batch says something of one that is up to so many times longer."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a micro-batch needs, as far as it is known before one was measured."""

    fixed_bytes: Callable[[int, bool], int]
    """(tokens, whether it trains): the loss's chunks, and gradients that are not there yet."""
    token_bytes: Callable[[bool], int]
    """(whether it trains): a rule of thumb for one token's activations."""
    is_quadratic: Callable[[], bool]
    """Whether attention holds scores of all pairs of tokens."""
    predicted_bytes: Callable[[int, bool], int | None] = lambda num_tokens, trains: None
    """(tokens, whether it trains): all but gradients, by simulation; None where there is none."""
    missing_bytes: Callable[[], int] = lambda: 0
    """Of gradients that are not there yet."""


@dataclass(frozen=True, slots=True)
class _Before:
    """What stood in memory before a micro-batch."""

    anonymous_bytes: int
    heap: Heap | None
    fixed_bytes: int
    predicted_bytes: float | None
    """By simulation, in bytes of the heap."""


class MemoryGuard:
    """Predicts that memory ends, for a process on a CPU; see `run.recover.Guard`."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._other_bytes = limits.other_bytes()
        self._token_bytes: dict[bool, float] = {}
        """Measured, by whether it trains."""
        self._longest: dict[bool, int] = {}
        self._excess_bytes = 0.0
        """By which a token needed more than was predicted."""
        self._before: _Before | None = None
        self._surplus = Surplus()
        self._refused = self._dared = (0, 0)
        """(tokens of a micro-batch, bytes of something else): refused last, and tried all the same."""
        self._is_certain = False

    def relent(self) -> bool:
        """See `run.recover.Guard`."""
        if not self._is_certain:
            self._dared = max(self._dared[0], self._refused[0]), max(self._dared[1], self._refused[1])
        return not self._is_certain

    def allocate(self, num_bytes: int, what: str) -> None:
        """See `run.recover.Guard`."""
        if num_bytes <= self._dared[1]:
            return
        needed = num_bytes - limits.swap_bytes()
        room = self._room_if_too_small(needed) if needed > 0 else None
        if room is not None:
            self._refused, self._is_certain = (0, num_bytes), needed > room.usable_bytes
            raise ForeseenMemoryError(f"{what} {_need(num_bytes, room)}")

    def before(self, num_tokens: int, *, trains: bool) -> None:
        """See `run.recover.Guard`."""
        needed = self.expected_bytes(num_tokens, trains=trains)
        room = self._room_if_too_small(needed) if num_tokens > self._dared[0] else None
        if room is not None:
            self._refused, self._is_certain = (num_tokens, 0), False
            raise ForeseenMemoryError(f"{num_tokens:,} tokens at once {_need(needed, room)}")
        self._before = _Before(
            limits.anonymous_bytes(),
            heap.account(),
            self._needs.fixed_bytes(num_tokens, trains),
            self._predicted(num_tokens, trains),
        )

    def after(self, num_tokens: int, *, trains: bool) -> None:
        """See `run.recover.Guard`."""
        before, self._before = self._before, None
        account = heap.account()
        anonymous = limits.anonymous_bytes()
        if account is not None:
            self._surplus.watch(anonymous - account.used_bytes - self._other_bytes)
        if before is None or before.heap is None or account is None:
            return
        grown = anonymous - before.anonymous_bytes
        if grown <= 0:
            return  # it found what it needed in what the heap kept: nothing is learnt
        stays = max(0, account.used_bytes - before.heap.used_bytes)
        if before.predicted_bytes is not None:
            # What stays is no part of it; nor is what came once, beside tensors, as far as the plan has kept it free.
            excess = grown - stays - before.predicted_bytes - limits.GROWTH_BYTES
            self._excess_bytes = max(self._excess_bytes, excess / num_tokens)
            return
        idle = max(0, before.anonymous_bytes - self._other_bytes - before.heap.used_bytes)
        fixed = max(0, before.fixed_bytes - stays)
        measured = max(0, grown + idle - stays - fixed) / num_tokens
        longest = self._longest.get(trains, 0)
        if longest * TELLING_SHARE < num_tokens:  # says more than all that came before
            self._token_bytes[trains] = 0.0
        if num_tokens * TELLING_SHARE >= longest:
            self._token_bytes[trains] = max(self._token_bytes[trains], measured)
            self._longest[trains] = max(longest, num_tokens)

    def forget(self) -> None:
        """What was measured holds no longer: the plan has changed what a token needs."""
        self._token_bytes.clear()
        self._longest.clear()
        self._excess_bytes = 0.0

    def expected_bytes(self, num_tokens: int, *, trains: bool) -> int:
        """What a micro-batch is expected to need beside what is there before it."""
        predicted = self._predicted(num_tokens, trains)
        if predicted is not None:
            return int(RESIDENT_PER_LIVE * self._needs.missing_bytes() + predicted + self._excess_bytes * num_tokens)
        longest = self._longest.get(trains, 0)
        if longest * TELLING_SHARE < num_tokens:
            per_token = float(self._needs.token_bytes(trains))
        else:
            per_token = self._token_bytes[trains]
            if self._needs.is_quadratic() and num_tokens > longest:
                per_token *= num_tokens / longest
        return self._needs.fixed_bytes(num_tokens, trains) + int(per_token * num_tokens)

    def _predicted(self, num_tokens: int, trains: bool) -> float | None:
        """By simulation, in bytes of the heap."""
        predicted = self._needs.predicted_bytes(num_tokens, trains)
        return None if predicted is None else predicted * RESIDENT_PER_LIVE

    def _room_if_too_small(self, needed: int) -> limits.Room | None:
        """A limit under which this does not fit, also after the heap has given back what it can."""
        if self._too_small(needed) is None:
            return None
        heap.give_back()
        return self._too_small(needed)

    def _too_small(self, needed: int) -> limits.Room | None:
        """A limit under which this does not fit."""
        room = limits.tightest(self._other_bytes)
        return room if needed + RESERVE_BYTES > room.usable_bytes else None


def _need(num_bytes: int, room: limits.Room) -> str:
    return (
        f"need about {num_bytes / 1e9:.2f} GB, and {room.free_bytes / 1e9:.2f} GB are left under {room.limit}, "
        f"{room.idle_bytes / 1e9:.2f} GB of what is held being unused"
    )
