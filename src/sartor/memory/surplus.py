"""The part of glibc's heap that lies idle, given back where it has grown without need.

While training lasts the heap keeps what is freed (`allocator.retaining`).  In half precision that alone lets a process
grow: kernels that oneDNN keeps lie between buffers that go, and the next micro-batch, of another length, finds no hole
that is large enough (docs/log.md has the measurements).  Pages of the holes go back to the system here; what the next
micro-batch touches comes again, zeroed, which costs it about a tenth of its time.  So that is done only where much has
gathered beyond what a micro-batch was seen to touch, and seldom.
"""

from __future__ import annotations

from collections.abc import Callable

from sartor.memory import limits

LEAST_BYTES = 256 << 20
"""Less is not worth it."""
SHARE = 0.5
"""Of what a micro-batch touches, that may lie idle beyond it."""
EVERY = 16
"""Micro-batches, at least, between two times."""


class Surplus:
    """Watches one process's idle memory from micro-batch to micro-batch."""

    def __init__(self, give_back: Callable[[], None] = limits.give_back) -> None:
        self._give_back = give_back
        self._needed_bytes = 0
        """The most that was idle after the first micro-batch, or after the first one that followed a giving back."""
        self._since: int | None = None
        """Micro-batches that came after that; None: that one is the next."""

    def watch(self, idle_bytes: int) -> None:
        """Called after each micro-batch, with the resident memory that the heap holds and does not use.

        Example: 1.1 GB after the first, then 0.2 GB more after each sixteen.  1.1 + 0.55 GB are passed after the
        forty-eighth: given back, and the forty-ninth touches what it needs again.
        """
        if self._since is None:
            self._needed_bytes = max(self._needed_bytes, idle_bytes)
            self._since = 0
            return
        self._since += 1
        allowed = self._needed_bytes + max(LEAST_BYTES, SHARE * self._needed_bytes)
        if self._since >= EVERY and idle_bytes > allowed:
            self._give_back()
            self._since = None
