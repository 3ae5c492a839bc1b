"""A thread that writes while training goes on, and the tensors that it reads meanwhile.

In: tensors that nobody changes between two updates of the parameters.  Out: the same tensors, read where they lie.
What it keeps true: what is read is what was there when it was taken, bit for bit; whoever is about to change them
calls `secure` before.

A checkpoint of tensors 1, 2, 3 on its way:

    the thread   writes 1           writes 2                        writes the copy of 3
    training     forward, backward  secure: waits for 2, copies 3   update, forward, ...

Where the thread was faster, nothing is waited for and nothing copied; where memory has no room for copies, all is
waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from sartor.compat import num_writes
from sartor.device import is_on_host
from sartor.errors import RunFolderError, is_out_of_memory

SMALL_BYTES = 1 << 16
"""Tensors up to this size are copied at once: counts of steps, buffers, generators."""


class Snapshot:
    """Tensors by name, until each of them has been read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, model_is_due: bool = False) -> None:
        """Args:
        tensors: on whatever device; small ones are copied at once, the others read where they lie.
        model_is_due: the thread first reads all of it as a whole (`reading_all`), and what it reads there cannot be
            copied: `secure` waits for the end of that.
        """
        self._tensors: dict[str, torch.Tensor] = {}
        self._versions: dict[str, int] = {}
        """Of what is read where it lies: how often torch has seen it written to."""
        self._changed = threading.Condition()
        self._is_reading = False
        self._is_wanted = False
        self._model_is_due = model_is_due
        for name, tensor in tensors.items():
            if tensor.nbytes <= SMALL_BYTES:
                self._tensors[name] = _copied(tensor)
            else:
                self._tensors[name] = tensor.detach()
                self._versions[name] = num_writes(tensor)

    def __iter__(self) -> Iterator[str]:
        """Names of what was not returned yet."""
        return iter(tuple(self._tensors))

    def __getitem__(self, name: str) -> torch.Tensor:
        """For its shape and dtype; its values may only be looked at while it is read."""
        return self._tensors[name]

    @property
    def lent_bytes(self) -> int:
        """Of what would have to be copied."""
        return sum(self._tensors[name].nbytes for name in self._versions)

    @contextmanager
    def reading(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor that does not change while the block lasts.

        Raises:
            RunFolderError: it was changed before it was read.
        """
        with self._undisturbed():
            yield self._tensors[name]
            self._see_unchanged([name])

    @contextmanager
    def reading_all(self) -> Iterator[None]:
        """While the block lasts nothing of the snapshot changes.

        Raises:
            RunFolderError: something was changed before it was read.
        """
        with self._undisturbed():
            yield
            self._see_unchanged(self._versions)
            self._model_is_due = False

    def returned(self, name: str) -> None:
        """A tensor has been read, and is not needed any more."""
        with self._changed:
            del self._tensors[name]
            self._versions.pop(name, None)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing will be read any more, whether all of it was or not."""
        with self._changed:
            self._model_is_due = False
            self._tensors.clear()
            self._versions.clear()
            self._changed.notify_all()

    def secure(self, has_room: Callable[[int], bool]) -> float:
        """Return when everything may be changed; how many seconds that took.

        Args:
            has_room: whether memory has room for copies of so many bytes.
        """
        started = time.perf_counter()
        with self._changed:
            if not self._versions and not self._model_is_due:
                return 0.0
            self._changed.wait_for(lambda: not self._model_is_due)
            self._is_wanted = True
            try:
                self._changed.wait_for(lambda: not self._is_reading)
                if self._versions and has_room(self.lent_bytes):
                    self._copy()
            finally:
                self._is_wanted = False
                self._changed.notify_all()
            self._changed.wait_for(lambda: not self._versions)
        return time.perf_counter() - started

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_wanted)  # else the thread would always be the first
            self._is_reading = True
        try:
            yield
        finally:
            with self._changed:
                self._is_reading = False
                self._changed.notify_all()

    def _see_unchanged(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._versions and num_writes(self._tensors[name]) != self._versions[name]:
                raise RunFolderError(
                    f"{name} was changed while the checkpoint was being written, and not by an optimizer's step: the "
                    "checkpoint is left out. Set save_in_background=False, or change it in on_step_end."
                )

    def _copy(self) -> None:
        try:
            copies = {name: _copied(self._tensors[name]) for name in self._versions}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return  # the reading is waited for
        self._tensors.update(copies)
        self._versions.clear()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, and nobody else's."""
    return tensor.detach().clone() if is_on_host(tensor) else tensor.detach().cpu()


class Writer:
    """Does one thing at a time in a thread of its own; what goes wrong there is raised at the next question."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job`, after the one before it.

        Raises:
            Exception: what the one before it raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(job,), name="sartor-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the job is done.

        Raises:
            Exception: what it raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def check(self) -> None:
        """Without waiting.

        Raises:
            Exception: what a job that has ended raised.
        """
        if not self.is_busy:
            self.wait()

    def _work(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
