"""Idle memory of the heap is given back where it has grown without need, and seldom."""

from sartor.memory.heap import EVERY, LEAST_BYTES, Surplus

MB = 1 << 20


def given_back(idle_bytes: list[int]) -> list[int]:
    """After which micro-batches, counted from 0."""
    found: list[int] = []
    number = 0
    surplus = Surplus(lambda: found.append(number))
    for number, idle in enumerate(idle_bytes):  # noqa: B007 - `found` reads it
        surplus.watch(idle)
    return found


def test_what_a_micro_batch_needs_again_is_kept() -> None:
    assert given_back([1000 * MB] * 200) == []
    assert given_back([1000 * MB + number * MB for number in range(200)]) == []


def test_what_gathers_beyond_it_is_given_back_and_seldom() -> None:
    growing = [1000 * MB + number * 50 * MB for number in range(60)]
    first = given_back(growing)[0]
    assert first == EVERY  # 1,800 MB, where half of 1,000 may gather
    assert given_back([1000 * MB, *[9000 * MB] * 60]) == [EVERY]  # which the next one needed: it is not surplus
    often = [1000 * MB if number % (EVERY + 1) == 0 else 9000 * MB for number in range(5 * EVERY)]
    assert given_back(often) == [EVERY * times + times - 1 for times in range(1, 5)]


def test_a_little_is_not_worth_it() -> None:
    assert given_back([MB, *[LEAST_BYTES] * 100]) == []
    assert given_back([MB, *[LEAST_BYTES + 2 * MB] * 100]) == [EVERY]
