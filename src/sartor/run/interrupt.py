"""Signals that want a run to end, held back until it can be saved; and a closed terminal, which does not end it.

In: SIGINT (Ctrl-C), SIGTERM or SIGHUP, at any moment.  Out: KeyboardInterrupt or `Terminated`, at a moment at which
weights, schedule and step count agree.

Python calls a handler between two of its own instructions, once however often the signal came meanwhile, and a backward
pass is one instruction that takes seconds.  So signals are counted where Python notes each as it comes, in a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_TOLD = b"\nsartor: stopping after this micro-batch; once more stops at once, without saving\n"


class Terminated(SystemExit):
    """SIGTERM: ends the program with the code that a shell gives to it, 143, unless somebody catches it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """While open, SIGTERM raises `Terminated` at once, where the program does not handle it in a way of its own."""
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, lambda number, frame: _deliver(None, number, frame))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interrupts:
    """While open (`with interrupts:`), a signal that arrives between `hold()` and `release()` waits for `pause()` or
    `release()`.

    A second one does not wait: whoever presses Ctrl-C twice wants out.  A closed terminal (SIGHUP) is survived: what
    would have been printed there goes nowhere.  Outside of the main thread, which alone gets signals, and where the
    program took a signal over by other means than Python's, nothing is changed; a handler of the program's own is
    called in its time.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._pending: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._pipe: tuple[int, int] | None = None
        """Of the numbers of signals: (to read, to write)."""
        self.is_urgent = False
        """Whether a second signal came: nothing is to be saved."""

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._open_pipe()
        self._take(signal.SIGINT, self._handle, default=False)
        self._take(signal.SIGTERM, self._handle, default=True)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            self._terminals = [number for number in (1, 2) if _is_terminal(number)]
            self._take(signal.SIGHUP, self._hang_up, default=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._close_pipe()
        before, self._before = self._before, {}
        pending, self._pending = self._pending, None
        self._is_held = False
        if error is None and pending is not None:
            _deliver(before[pending], pending, None)

    def hold(self) -> None:
        """From here on a signal waits."""
        self._is_held = True

    def pause(self) -> None:
        """A signal that has waited counts now; one that comes later waits.

        Raises:
            KeyboardInterrupt, Terminated: one has waited.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            _deliver(self._before[pending], pending, None)

    def release(self) -> None:
        """From here on a signal counts at once; so does one that has waited.

        Raises:
            KeyboardInterrupt, Terminated: one has waited.
        """
        self._is_held = False
        self.pause()

    def _take(self, number: int, handler: Callable[[int, FrameType | None], None], *, default: bool) -> None:
        """Install a handler, unless the signal is ignored, or handled by something Python knows nothing of."""
        before = signal.getsignal(number)
        if callable(before) or (default and before == signal.SIG_DFL):
            self._before[number] = before
            signal.signal(number, handler)

    def _open_pipe(self) -> None:
        """Have signals noted, unless somebody else (an event loop) has that done already."""
        if os.name == "nt":  # only sockets there
            return
        read, write = os.pipe()
        for descriptor in (read, write):
            os.set_blocking(descriptor, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._pipe = read, write
        if before != -1:
            signal.set_wakeup_fd(before)

    def _close_pipe(self) -> None:
        if self._pipe is None:
            return
        read, write = self._pipe
        self._pipe = None
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, write):  # somebody else's
            signal.set_wakeup_fd(current)
        os.close(read)
        os.close(write)

    def _num_came(self) -> int:
        """How many signals that want an end have come since the last call; 0 where they are not noted."""
        if self._pipe is None:
            return 0
        try:
            noted = os.read(self._pipe[0], 4096)
        except BlockingIOError:
            return 0
        return sum(number in (signal.SIGINT, signal.SIGTERM) for number in noted)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held and self._pending is None and self._num_came() < 2:
            self._pending = number
            with contextlib.suppress(OSError):
                os.write(2, _TOLD)  # print and logging may be what was interrupted
            return
        self.is_urgent |= self._is_held  # a second one: else this one would be waiting
        self._is_held, self._pending = False, None
        _deliver(self._before[number], number, frame)

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        """The terminal is gone: let what was one lead nowhere, so that printing is no error."""
        for descriptor in self._terminals:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _deliver(before: Any, number: int, frame: FrameType | None) -> None:
    """What the signal would have done without us."""
    if callable(before):
        before(number, frame)
    else:
        raise Terminated


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
