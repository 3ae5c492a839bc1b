"""Freed memory stays with the process while training lasts, goes back at its end, and before where much lies idle."""

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from sartor.memory.heap import EVERY, LEAST_BYTES, Surplus, retaining

MIB = 1 << 20


def in_a_fresh_process(what: str, **variables: str) -> None:
    """Run a function of this module where no test has left holes in the heap, which a block would be put into."""
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.memory import test_heap; test_heap.{what}()"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def allocate_and_free(mebibytes: int) -> None:
    block = torch.ones(mebibytes * MIB // 4)
    block[0] = 2.0
    del block
    gc.collect()


def keep_and_give_back() -> None:
    before = resident()
    with retaining() as arranged:
        assert arranged
        allocate_and_free(128)
        assert resident() - before > 100 * MIB
    assert resident() - before < 30 * MIB
    allocate_and_free(128)
    assert resident() - before < 30 * MIB


def keep_as_the_user_wants() -> None:
    before = resident()
    with retaining():
        pass
    allocate_and_free(128)
    assert resident() - before > 100 * MIB


def keep_nothing() -> None:
    before = resident()
    with retaining(wanted=False) as arranged:
        assert not arranged
        allocate_and_free(128)
        assert resident() - before < 30 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    in_a_fresh_process("keep_and_give_back")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1073741824"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x40000000"},
    ],
)
def test_what_the_process_was_started_with_holds_again_after_the_block(variables: dict[str, str]) -> None:
    in_a_fresh_process("keep_as_the_user_wants", **variables)


def test_where_it_is_not_wanted_nothing_happens() -> None:
    in_a_fresh_process("keep_nothing")


def test_training_on_a_cpu_keeps_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hf import tiny  # here, since the fresh processes have no need of it

    told = []

    @contextmanager
    def watched(*, wanted: bool) -> Iterator[bool]:
        told.append(wanted)
        yield wanted
        told.append("given back")

    monkeypatch.setattr("sartor.run.training.retaining", watched)
    tiny.trainer(tmp_path, max_steps=1).train()
    assert told == [True, "given back"]


# --- what lies idle is given back, and seldom ------------------------------------------------------------------------


def given_back(idle_bytes: list[int]) -> list[int]:
    """After which micro-batches, counted from 0."""
    found: list[int] = []
    number = 0
    surplus = Surplus(lambda: found.append(number))
    for number, idle in enumerate(idle_bytes):  # noqa: B007 - `found` reads it
        surplus.watch(idle)
    return found


def test_what_a_micro_batch_needs_again_is_kept() -> None:
    assert given_back([1000 * MIB] * 200) == []
    assert given_back([1000 * MIB + number * MIB for number in range(200)]) == []


def test_what_gathers_beyond_it_is_given_back_and_seldom() -> None:
    growing = [1000 * MIB + number * 50 * MIB for number in range(60)]
    first = given_back(growing)[0]
    assert first == EVERY  # 1,800 MiB, where half of 1,000 may gather
    assert given_back([1000 * MIB, *[9000 * MIB] * 60]) == [EVERY]  # which the next one needed: it is not surplus
    often = [1000 * MIB if number % (EVERY + 1) == 0 else 9000 * MIB for number in range(5 * EVERY)]
    assert given_back(often) == [EVERY * times + times - 1 for times in range(1, 5)]


def test_a_little_is_not_worth_it() -> None:
    assert given_back([MIB, *[LEAST_BYTES] * 100]) == []
    assert given_back([MIB, *[LEAST_BYTES + 2 * MIB] * 100]) == [EVERY]
