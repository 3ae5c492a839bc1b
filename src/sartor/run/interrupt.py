"""Ctrl-C, held back while an optimizer step is half done.

In: SIGINT, at any moment.  Out: KeyboardInterrupt, at a moment at which weights, schedule and step count agree.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While open (`with interrupts:`), an interrupt that arrives between `hold()` and `release()` waits for
    `release()`.

    A second one does not wait: whoever presses Ctrl-C twice wants out.  Outside of the main thread, which alone gets
    signals, and where the program took SIGINT over by other means than Python's, nothing is changed.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._is_pending = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):  # not ignored, and not a handler that Python knows nothing of
                self._before = before
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
        if error is None:
            self.release()
        self._is_held = self._is_pending = False

    def hold(self) -> None:
        """From here on an interrupt waits."""
        self._is_held = True

    def release(self) -> None:
        """From here on an interrupt counts at once; so does one that has waited.

        Raises:
            KeyboardInterrupt: one has waited.
        """
        self._is_held = False
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held and not self._is_pending:
            self._is_pending = True
            return
        self._is_held = self._is_pending = False
        self._before(number, frame)
