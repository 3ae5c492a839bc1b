"""Signals that want a run to end, held back until it can be saved; and a closed terminal, which does not end it.

In: SIGINT (Ctrl-C), SIGTERM or SIGHUP, at any moment.  Out: KeyboardInterrupt or `Terminated`, at a moment at which
    weights,
schedule and step count agree.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_TOLD = b"\nsartor: stopping after this micro-batch; once more stops at once, without saving\n"


class Terminated(SystemExit):
    """SIGTERM: ends the program with the code that a shell gives to it, 143, unless somebody catches it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


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
        self.is_urgent = False
        """Whether a second signal came: nothing is to be saved."""

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held and self._pending is None:
            self._pending = number
            with contextlib.suppress(OSError):
                os.write(2, _TOLD)  # print and logging may be what was interrupted
            return
        self.is_urgent = self._pending is not None
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
