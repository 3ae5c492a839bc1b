"""Reads a stream ahead of who uses it: its rows are encoded on a thread while the model trains on those before.

What comes in: anything to iterate over.  What goes out: the same items in the same order.  What it keeps true: no more
than so many items wait; an error of the stream arrives where its item would have; when the consumer stops, at the end
or before it, the thread stops too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.05
"""How long the thread waits for room before it looks whether anybody still reads."""
STOP_S = 10.0
"""How long a consumer that stops waits for the thread, which may be waiting for a network."""


class _End:
    """Stands behind the last item, with the error that the stream ended with."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterable[T], num_items: int) -> Generator[T]:
    """The items, of which up to `num_items` are read before they are asked for.

    The thread begins with the first item that is asked for, and ends when the generator does: closed, exhausted or
    forgotten.  It is a daemon: a program that ends does not wait for it.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(num_items)
    is_over = threading.Event()

    def put(item: T | _End) -> bool:
        while not is_over.is_set():
            try:
                waiting.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        error: BaseException | None = None
        try:
            iterator = iter(items)
            with closing(iterator) if isinstance(iterator, Generator) else nullcontext():
                for item in iterator:
                    if not put(item):
                        return
        except BaseException as raised:  # whatever it is, it belongs to the consumer
            error = raised
        put(_End(error))

    thread = threading.Thread(target=read, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        is_over.set()
        thread.join(STOP_S)
