"""The guard: raises before a micro-batch that would not fit, and learns what one needs from those that went through."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from sartor.errors import ForeseenMemoryError
from sartor.memory import heap, limits
from sartor.memory.guard import MemoryGuard, Needs
from sartor.memory.limits import GROWTH_BYTES, RESERVE_BYTES, RESIDENT_PER_LIVE

MB = 1 << 20


def needs(*, fixed: int = 10 * MB, token: int = MB, quadratic: bool = False) -> Needs:
    return Needs(lambda tokens, trains: fixed, lambda trains: token, lambda: quadratic)


class Memory:
    """What the guard reads, under the test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: int, idle: int = 0) -> None:
        self.free, self.idle = free, idle
        self.anonymous = 500 * MB
        self.heap = heap.Heap(400 * MB, 100 * MB)
        self.trims = 0
        self.after_trim: Callable[[], None] = lambda: None
        monkeypatch.setattr(limits, "rooms", lambda other: [limits.Room(self.free, self.idle, "a limit")])
        monkeypatch.setattr(limits, "anonymous_bytes", lambda: self.anonymous)
        monkeypatch.setattr(heap, "account", lambda: self.heap)
        monkeypatch.setattr(heap, "give_back", self._trim)

    def _trim(self) -> None:
        self.trims += 1
        self.after_trim()


def test_what_would_not_fit_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, free=110 * MB + RESERVE_BYTES)
    guard = MemoryGuard(needs())
    guard.before(100, trains=True)
    assert memory.trims == 0
    with pytest.raises(ForeseenMemoryError, match=r"101 tokens at once need about 0\.12 GB.*a limit"):
        guard.before(101, trains=True)
    guard.relent()
    guard.before(101, trains=True)
    with pytest.raises(ForeseenMemoryError):
        guard.before(102, trains=True)


def test_unused_memory_of_the_heap_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, free=RESERVE_BYTES, idle=100 * MB)
    guard = MemoryGuard(needs())
    guard.before(90, trains=True)
    with pytest.raises(ForeseenMemoryError):
        guard.before(91, trains=True)


def foreseen(*, gradients: int = 0) -> Needs:
    """What the plan's simulation says: a megabyte a token, whatever the rule of thumb."""
    return Needs(lambda tokens, trains: 0, lambda trains: 9 * MB, lambda: False,
                 lambda tokens, trains: tokens * MB if trains else None, lambda: gradients)  # fmt: skip


def test_what_was_simulated_takes_the_place_of_the_rule_of_thumb(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, free=1 << 40)
    guard = MemoryGuard(foreseen(gradients=30 * MB))
    assert guard.expected_bytes(100, trains=True) == int(130 * MB * RESIDENT_PER_LIVE)
    assert guard.expected_bytes(100, trains=False) == 900 * MB


def test_what_the_plan_says_fits_is_not_refused_by_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standing tensors, a process that has grown as it may, and the last pass's memory unused in the heap."""
    plan_needs = RESIDENT_PER_LIVE * (200 + 100) * MB + GROWTH_BYTES + RESERVE_BYTES
    available = int(plan_needs) + 1
    used = int(200 * MB * RESIDENT_PER_LIVE) + GROWTH_BYTES
    memory = Memory(monkeypatch, free=available - used - 90 * MB, idle=90 * MB)
    guard = MemoryGuard(foreseen())
    guard.before(100, trains=True)
    memory.free -= 2 * MB
    with pytest.raises(ForeseenMemoryError):
        guard.before(100, trains=True)


def test_what_came_and_went_beyond_the_forecast_is_expected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, free=1 << 40)
    guard = MemoryGuard(foreseen())
    before = guard.expected_bytes(100, trains=True)
    guard.before(100, trains=True)
    memory.anonymous += before + GROWTH_BYTES
    guard.after(100, trains=True)  # as foreseen
    assert guard.expected_bytes(100, trains=True) == before
    guard.before(100, trains=True)
    memory.anonymous += before + GROWTH_BYTES + 90 * MB
    memory.heap = heap.Heap(440 * MB, 0)  # 40 of the 90 stay
    guard.after(100, trains=True)
    assert guard.expected_bytes(100, trains=True) == before + 50 * MB
    guard.forget()
    assert guard.expected_bytes(100, trains=True) == before


def test_the_heap_is_trimmed_before_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, free=0)
    memory.after_trim = lambda: setattr(memory, "free", 1 << 30)
    MemoryGuard(needs()).before(100, trains=True)
    assert memory.trims == 1


def test_what_a_token_needs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, free=1 << 40)
    guard = MemoryGuard(needs())
    guard.before(100, trains=True)
    memory.anonymous += 250 * MB  # beside the 100 MB that the heap kept: 350 MB came, 10 of them fixed
    memory.heap = heap.Heap(400 * MB, 350 * MB)
    guard.after(100, trains=True)
    assert guard.expected_bytes(100, trains=True) == 350 * MB
    assert guard.expected_bytes(400, trains=True) == 10 * MB + 4 * 340 * MB
    assert guard.expected_bytes(500, trains=True) == 510 * MB  # too far from what was measured: the rule of thumb
    assert guard.expected_bytes(100, trains=False) == 110 * MB
    guard.before(100, trains=True)
    guard.after(100, trains=True)  # nothing grew: nothing is learnt
    assert guard.expected_bytes(100, trains=True) == 350 * MB
    guard.forget()
    assert guard.expected_bytes(100, trains=True) == 110 * MB


def test_scores_of_all_pairs_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, free=1 << 40)
    guard = MemoryGuard(needs(fixed=0, quadratic=True))
    guard.before(100, trains=True)
    memory.anonymous += 100 * MB
    guard.after(100, trains=True)
    assert guard.expected_bytes(200, trains=True) == 4 * guard.expected_bytes(100, trains=True)


def test_what_certainly_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, free=100 * MB, idle=100 * MB)
    monkeypatch.setattr(limits, "swap_bytes", lambda: 0)
    guard = MemoryGuard(needs())
    guard.allocate(200 * MB - RESERVE_BYTES, "states")
    with pytest.raises(ForeseenMemoryError, match=r"states need about 0\.21 GB.*a limit"):
        guard.allocate(200 * MB, "states")
    assert guard.relent()  # it may just fit
    guard.allocate(200 * MB, "states")
    with pytest.raises(ForeseenMemoryError):
        guard.allocate(201 * MB, "states")
    assert not guard.relent()
    monkeypatch.setattr(limits, "swap_bytes", lambda: 300 * MB)
    guard.allocate(201 * MB, "states")


@pytest.mark.skipif(sys.platform != "linux", reason="limits on a process are read from Linux's files")
def test_a_limit_on_a_real_process_is_seen() -> None:
    code = (
        "import resource; from sartor.memory import limits\n"
        "free = lambda: min(room.free_bytes for room in limits.rooms())\n"
        "before = free()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "assert free() < 1 << 30 < before, (free(), before)\n"
        "block = bytearray(300 << 20); assert free() < (1 << 30) - (300 << 20)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_after_each_micro_batch_what_lies_idle_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartor.memory.limits.other_bytes", lambda: 5)
    guard = MemoryGuard(Needs(lambda tokens, trains: 0, lambda trains: 1, lambda: False))
    seen: list[int] = []
    monkeypatch.setattr(guard._surplus, "watch", seen.append)
    monkeypatch.setattr("sartor.memory.heap.account", lambda: heap.Heap(100, 70))
    monkeypatch.setattr("sartor.memory.limits.anonymous_bytes", lambda: 155)
    guard.before(8, trains=True)
    guard.after(8, trains=True)
    assert seen == [50]
