"""A thread that writes what training goes on with: it writes what was there when the tensors were lent."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sartor.errors import RunFolderError
from sartor.run.snapshot import SMALL_BYTES, Snapshot, Writer

LARGE = SMALL_BYTES  # of float32: four times as many bytes


def lent(**options: Any) -> tuple[dict[str, torch.Tensor], Snapshot]:
    tensors = {name: torch.full((LARGE,), float(number)) for number, name in enumerate("abc")}
    return tensors, Snapshot(tensors, **options)


def never(num_bytes: int) -> bool:
    raise AssertionError(f"{num_bytes} bytes would be copied")


class Reader(threading.Thread):
    """Reads all that is lent, in order, each when it is told to."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot
        self.may_go_on = threading.Semaphore(0)
        self.found: dict[str, float] = {}
        self.reads = threading.Event()
        self.start()

    def run(self) -> None:
        for name in self.snapshot:
            with self.snapshot.reading(name) as tensor:
                self.reads.set()
                assert self.may_go_on.acquire(timeout=30)
                assert bool((tensor == tensor[0]).all())
                self.found[name] = float(tensor[0])
            self.snapshot.returned(name)

    def goes_on(self, times: int) -> None:
        for _ in range(times):
            self.may_go_on.release()


def later(action: Callable[[], Any]) -> None:
    threading.Timer(0.05, action).start()


def test_what_was_read_in_time_is_neither_waited_for_nor_copied() -> None:
    tensors, snapshot = lent()
    reader = Reader(snapshot)
    reader.goes_on(3)
    reader.join()
    assert snapshot.secure(never) == 0.0
    for tensor in tensors.values():
        tensor.zero_()
    assert reader.found == {"a": 0.0, "b": 1.0, "c": 2.0}


def test_what_is_being_read_is_waited_for_and_the_rest_is_copied() -> None:
    tensors, snapshot = lent()
    reader = Reader(snapshot)
    assert reader.reads.wait(30)
    later(lambda: reader.goes_on(1))
    asked: list[int] = []
    seconds = snapshot.secure(lambda num_bytes: asked.append(num_bytes) or True)
    assert seconds >= 0.04
    assert "a" in reader.found
    for tensor in tensors.values():
        tensor.fill_(9.0)
    reader.goes_on(2)
    reader.join()
    assert reader.found == {"a": 0.0, "b": 1.0, "c": 2.0}
    assert asked[0] in (2 * 4 * LARGE, 3 * 4 * LARGE)  # whether a was returned by then


def test_without_room_for_a_copy_all_is_waited_for() -> None:
    tensors, snapshot = lent()
    reader = Reader(snapshot)
    later(lambda: reader.goes_on(3))
    snapshot.secure(lambda num_bytes: False)
    for tensor in tensors.values():
        tensor.fill_(9.0)
    reader.join()
    assert reader.found == {"a": 0.0, "b": 1.0, "c": 2.0}


def test_a_copy_that_memory_has_no_room_for_after_all_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    tensors, snapshot = lent()
    monkeypatch.setattr("sartor.run.snapshot._copied", fails)
    reader = Reader(snapshot)
    later(lambda: reader.goes_on(3))
    snapshot.secure(lambda num_bytes: True)
    tensors["c"].zero_()
    reader.join()
    assert reader.found["c"] == 2.0


def test_a_model_that_is_due_is_waited_for_even_if_its_reading_has_not_begun() -> None:
    tensors, snapshot = lent(model_is_due=True)
    found: list[float] = []

    def read() -> None:
        with snapshot.reading_all():
            time.sleep(0.05)
            found.extend(float(tensor[-1]) for tensor in tensors.values())

    later(read)
    snapshot.secure(lambda num_bytes: True)
    assert found == [0.0, 1.0, 2.0]
    tensors["a"].fill_(9.0)
    reader = Reader(snapshot)
    reader.goes_on(3)
    reader.join()
    assert reader.found["a"] == 0.0


def test_whatever_ends_the_reading_early_ends_the_waiting() -> None:
    for model_is_due in (True, False):
        _, snapshot = lent(model_is_due=model_is_due)
        later(snapshot.end)
        snapshot.secure(lambda num_bytes: False)
        assert list(snapshot) == []


def test_small_tensors_may_change_at_once() -> None:
    step = torch.tensor(3.0)
    snapshot = Snapshot({"step": step})
    assert snapshot.secure(never) == 0.0
    step.add_(1)
    with snapshot.reading("step") as found:
        assert float(found) == 3.0


def test_what_was_changed_although_it_was_lent_is_told_by_name() -> None:
    tensors, snapshot = lent()
    with snapshot.reading("a"):
        pass
    tensors["b"].add_(1)
    with (
        pytest.raises(RunFolderError, match="b was changed while the checkpoint was being written"),
        snapshot.reading("b"),
    ):
        pass
    with pytest.raises(RunFolderError, match="on_step_end"), snapshot.reading_all():
        pass


def test_an_error_in_the_background_is_raised_at_the_next_question_and_once() -> None:
    writer = Writer()

    def fails() -> None:
        raise OSError(28, "full")

    writer.start(fails)
    while writer.is_busy:
        time.sleep(0.001)
    with pytest.raises(OSError, match="full"):
        writer.check()
    writer.check()
    writer.start(fails)
    with pytest.raises(OSError, match="full"):
        writer.start(lambda: None)
    writer.wait()


def test_one_job_waits_for_the_other() -> None:
    done: list[int] = []
    writer = Writer()
    writer.start(lambda: (time.sleep(0.05), done.append(1)))
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]
