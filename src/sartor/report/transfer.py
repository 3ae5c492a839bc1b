"""Talking to the Hub without waiting for ever: requests that stand still end, and pushes in the background can be left.

In: calls of huggingface_hub, which sets no time-out of its own.  Out: the same calls, ended where the Hub neither takes
nor sends a byte for long.  What it keeps true: a transfer that makes progress is never cut, however slow it is; a
program that wants to end is never held up by one that it has given up.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sartor.errors import SartorError

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import CommitInfo, HfApi

T = TypeVar("T")

TIMEOUT_S = 300.0
"""Seconds without a byte in either direction after which a request is given up."""
_LOOK_S = 0.5
_TEXTS = (".json", ".jsonl", ".jinja", ".md", ".txt", ".py")
_LARGE_BYTES = 1 << 20
_HOOKS = threading.Lock()


class StandstillError(Exception):
    """A request has waited for as long as it may."""


class UnreachableError(Exception):
    """No connection was made."""


class GivenUpError(Exception):
    """Nobody waits for this push any more."""


@contextmanager
def limited(timeout_s: float, is_given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """While the block lasts, requests of huggingface_hub from this thread end where nothing moves.

    huggingface_hub would try a request that timed out five times more, and a connection that was refused with a new
    client; so what went wrong leaves it as an exception that it does not know.

    Args:
        timeout_s: without a byte in either direction.
        is_given_up: asked before each request.

    Raises:
        StandstillError: nothing has moved for `timeout_s`.
        UnreachableError: no connection was made.
        GivenUpError: `is_given_up` said so.
    """
    from huggingface_hub import get_session

    thread = threading.get_ident()

    def trace(event: str, about: Mapping[str, Any]) -> None:
        error = about.get("exception")
        if not event.endswith(".failed") or error is None:
            return
        if "Timeout" in type(error).__name__:
            raise StandstillError(_standstill(event, timeout_s))
        if event.startswith("connection."):
            raise UnreachableError(f"{type(error).__name__}: {error}")
        hook()  # it is tried again, with a new client where another thread has closed this one

    def limit(request: Any) -> None:
        if threading.get_ident() != thread:
            return
        if is_given_up():
            raise GivenUpError
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        request.extensions["trace"] = trace

    clients: list[Any] = []

    def hook() -> None:
        client = get_session()
        with _HOOKS:
            if client not in clients:
                clients.append(client)
                hooks = client.event_hooks
                client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}

    hook()
    try:
        yield
    finally:
        with _HOOKS:
            for client in clients:
                hooks = client.event_hooks
                client.event_hooks = {**hooks, "request": [one for one in hooks["request"] if one is not limit]}


def _standstill(event: str, timeout_s: float) -> str:
    if event.startswith("connection."):
        return f"it has not taken the connection for {timeout_s:g} s"
    if ".send_" in event:
        return f"it took the connection, but no byte of what was sent for {timeout_s:g} s"
    return f"it took the request, and has sent no byte for {timeout_s:g} s"


def commit_folder(
    api: HfApi, folder: Path, repo_id: str, *, path_in_repo: str | None, message: str | None, revision: str | None
) -> CommitInfo:
    """Upload all files of a folder as one commit, in this thread alone.

    `HfApi.upload_folder` uploads several files in threads, which the end of the program would wait for, whatever they
    wait for: so large files are uploaded one after the other, before the commit.
    """
    from huggingface_hub import CommitOperationAdd, RepoCard

    prefix = f"{path_in_repo}/" if path_in_repo else ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for card in (path for path in files if path == folder / "README.md" and not prefix):
        RepoCard.load(card).validate("model")  # before gigabytes are uploaded
    additions = [CommitOperationAdd(prefix + path.relative_to(folder).as_posix(), path) for path in files]
    for path, addition in zip(files, additions, strict=True):
        if path.suffix not in _TEXTS or path.stat().st_size >= _LARGE_BYTES:
            api.preupload_lfs_files(repo_id, [addition], revision=revision, free_memory=False)
    return api.create_commit(repo_id, additions, commit_message=message or "Upload", revision=revision)


class Line:
    """Jobs one after the other, in the order of `add`, in threads that no end of the program waits for by itself.

    Where the program comes to its end, jobs are waited for that nobody has given up; Ctrl-C gives them up.
    """

    def __init__(self) -> None:
        self._open: dict[Future[Any], threading.Event] = {}
        """Jobs, and whether the next one may begin."""
        self._last: threading.Event | None = None

    def add(self, job: Callable[[Callable[[], bool]], T]) -> Future[T]:
        """Begin a job when its turn has come.

        Args:
            job: called with a function that tells whether it was given up.
        """
        if self._last is None:
            atexit.register(self._finish)
        future: Future[T] = Future()
        before, over = self._last, threading.Event()

        def work() -> None:
            if before is not None:
                before.wait()
            if future.set_running_or_notify_cancel():
                try:
                    result = job(over.is_set)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            over.set()
            self._open.pop(future, None)

        self._open[future] = self._last = over
        threading.Thread(target=work, name="sartor-push", daemon=True).start()
        return future

    def give_up(self, jobs: Iterable[Future[Any]]) -> None:
        """Wait for these no more: those that have not begun never do, one that has makes no further request."""
        for job in jobs:
            job.cancel()
            over = self._open.pop(job, None)
            if over is not None and not job.cancelled():
                over.set()

    def _finish(self) -> None:
        jobs = tuple(self._open)
        if not jobs or isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
            return
        print("sartor: waiting for a push to the Hub to end; Ctrl-C gives it up", file=sys.stderr, flush=True)
        try:
            wait_for(jobs)
        except KeyboardInterrupt:  # end as Python does where nobody catches it
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        for job in jobs:
            if isinstance(error := job.exception(), SartorError):
                print(f"sartor: {error}", file=sys.stderr, flush=True)


LINE = Line()
"""Of this process: pushes to a repository must not overtake each other, whoever began them."""


def wait_for(jobs: Iterable[Future[Any]]) -> None:
    """Until all are done; a signal ends the waiting on every system."""
    left = set(jobs)
    while left:
        left = wait(left, timeout=_LOOK_S).not_done
