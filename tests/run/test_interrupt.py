"""Ctrl-C waits while it is held back, counts twice, and leaves the program's own handler as it was."""

import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sartor.run.interrupt import Interrupts, Terminated


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def python_handles_sigint() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_one_that_is_not_held_counts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_is_held_counts_when_it_is_released() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        press()
        done.append("update")
        interrupts.release()
        done.append("too far")
    assert done == ["update"]


def test_a_second_one_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        press()
        done.append("first")
        press()
        done.append("second")
    assert done == ["first"]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX'")
@pytest.mark.parametrize("times", [1, 2])
def test_two_within_one_long_operation_are_two(times: int) -> None:
    """As in a backward pass of seconds, after which Python calls the handler once for both."""
    pressing = f"for i in $(seq {times}); do kill -INT {os.getpid()}; sleep 0.1; done"
    calls = 0

    def hears(number: int, frame: Any) -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hears)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        with subprocess.Popen(["sh", "-c", pressing]):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)  # a second, and more on a busy machine
        interrupts.pause()
    assert interrupts.is_urgent is (times == 2)
    assert calls == 1
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX'")
def test_two_different_ones_within_one_long_operation_are_urgent_too() -> None:
    """Python then calls both handlers; the later call must not take back what the first has found."""
    pressing = f"kill -TERM {os.getpid()}; sleep 0.1; kill -INT {os.getpid()}"
    with pytest.raises((KeyboardInterrupt, Terminated)), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        with subprocess.Popen(["sh", "-c", pressing]):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)
        interrupts.pause()
    assert interrupts.is_urgent


def test_an_event_loops_notes_of_signals_are_left_to_it() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    try:
        with Interrupts() as interrupts:
            interrupts.hold()
            assert signal.set_wakeup_fd(write) == write
        assert signal.set_wakeup_fd(-1) == write
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)


def test_one_that_is_still_held_at_the_end_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        press()


def test_another_error_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="mine"), Interrupts() as interrupts:  # noqa: PT012
        interrupts.hold()
        press()
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_programs_own_is_called_and_kept() -> None:
    heard: list[int] = []

    def mine(number: int, frame: Any) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, mine)
    with Interrupts():
        press()
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        press()
        interrupts.hold()
        press()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_in_another_thread_nothing_is_installed() -> None:
    handlers = []

    def work() -> None:
        with Interrupts() as interrupts:
            interrupts.hold()
            handlers.append(signal.getsignal(signal.SIGINT))
            interrupts.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
