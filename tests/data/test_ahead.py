"""A stream is read ahead of its consumer: in order, bounded, with its errors, and never longer than somebody reads."""

import threading
import time
from collections.abc import Iterator

import pytest

from sartor.data.encoding.ahead import ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.01)
    assert condition()  # type: ignore[operator]


class Source:
    """Counts what was read of it, and whether it was closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.num_read = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise ValueError(f"row {number}")
                self.num_read += 1
                yield number
        finally:
            self.is_closed = True


def test_items_come_in_order_and_the_thread_ends_with_them() -> None:
    assert list(ahead(Source(1000), 7)) == list(range(1000))
    until(lambda: not threads())


def test_items_are_read_before_they_are_asked_for_and_no_more_than_allowed() -> None:
    source = Source(1000)
    items = ahead(source, 8)
    assert next(items) == 0
    until(lambda: source.num_read == 10)  # one taken, eight waiting, one in the thread's hands
    time.sleep(0.2)
    assert source.num_read == 10
    items.close()


def test_an_error_arrives_behind_the_items_before_it() -> None:
    items = ahead(Source(10, fails_at=3), 8)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(items)
    until(lambda: not threads())


def test_a_consumer_that_stops_stops_the_thread_and_closes_the_stream() -> None:
    source = Source(10**9)
    for item in ahead(source, 4):
        if item == 5:
            break
    until(lambda: not threads())
    assert source.is_closed


def test_ctrl_c_in_the_consumer_stops_the_thread() -> None:
    source = Source(10**9)

    def consume() -> None:
        for item in ahead(source, 4):
            if item == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    until(lambda: not threads())
    assert source.is_closed


def test_nothing_is_read_before_the_first_is_asked_for() -> None:
    source = Source(10)
    items = ahead(source, 4)
    time.sleep(0.1)
    assert source.num_read == 0
    items.close()
