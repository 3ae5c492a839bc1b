"""What both kinds of mutants share: copies of the project, and processes that run its tests there."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
# pytest's exit codes: a collection error (2) or a wrong test name (4) is no kill
PASSED, FAILED = 0, 1


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of what the tests need, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sartor-mutant-") as folder:
        copy = Path(folder) / ROOT.name
        for name in ("src", "tests", "benchmarks", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        shared = ROOT.parent / "shared"
        if shared.exists():  # data that some tests read, and skip without
            (copy.parent / "shared").symlink_to(shared)
        yield copy


class Runner:
    """A process that runs pytest; see forked.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, root: Path, tests: Sequence[str], timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Exit code and output of pytest on a tree; one that takes too long has failed."""
        assert self._process.stdin is not None
        output = root / "pytest.out"
        print(
            json.dumps({"root": str(root), "tests": list(tests), "output": str(output)}),
            file=self._process.stdin,
            flush=True,
        )
        process = self._answer("pid")
        timer = threading.Timer(timeout_s, os.killpg, (process, signal.SIGKILL))
        timer.start()
        code = self._answer("code")
        timer.cancel()
        text = output.read_text(encoding="utf-8", errors="replace")
        return (FAILED, f"{text}\ntimed out after {timeout_s:.0f} s") if code == -signal.SIGKILL else (code, text)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self, name: str) -> int:
        assert self._process.stdout is not None
        return int(json.loads(self._process.stdout.readline())[name])


@contextlib.contextmanager
def runners(jobs: int) -> Iterator[queue.Queue[Runner]]:
    """As many processes as jobs, in a queue from which each job borrows one."""
    made = [Runner() for _ in range(jobs)]
    available: queue.Queue[Runner] = queue.Queue()
    for runner in made:
        available.put(runner)
    try:
        yield available
    finally:
        for runner in made:
            runner.close()


@contextlib.contextmanager
def borrowed(available: queue.Queue[Runner]) -> Iterator[Runner]:
    """One of the processes, for as long as the block lasts."""
    runner = available.get()
    try:
        yield runner
    finally:
        available.put(runner)


def pass_as_they_are(tests: Sequence[str], available: queue.Queue[Runner], pool: ThreadPoolExecutor, jobs: int) -> bool:
    """Whether all tests pass on an unchanged copy; says so where not."""
    print(f"{len(tests)} tests or files of tests on the code as it is", flush=True)

    def run(part: Sequence[str]) -> tuple[int, str]:
        with copied() as copy, borrowed(available) as runner:
            return runner.run(copy, part)

    for code, output in pool.map(run, [tests[start::jobs] for start in range(min(jobs, len(tests)))]):
        if code != PASSED:
            print(output[-4000:])
            print("they do not pass on the code as it is: mend that first")
            return False
    return True


def reason_of(output: str) -> str:
    """The first line of pytest's output that says why a test failed."""
    return next((line[1:].strip() for line in output.splitlines() if line.startswith("E  ")), "")
