"""Run the mutants: first their tests on the code as it is, which must pass, then on each mutant, where one must fail.

    python -m tests.mutants [NAME ...] [--jobs 2]

Exit code 0 only where every mutant was killed.
"""

from __future__ import annotations

import argparse
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
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
# pytest's exit codes: a collection error (2) or a wrong test name (4) is no kill
PASSED, FAILED = 0, 1
NO_KILL = ("NameError", "SyntaxError", "ImportError", "IndentationError", "fixture '")
"""A mutant that does not even run proves nothing about the test."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; print a line per mutant and a last line that counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutants to run (default: all)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown or not chosen:
        print(f"no such mutant: {', '.join(sorted(unknown)) or 'the catalogue is empty'}")
        return 2
    if arguments.list:
        print("\n".join(f"{mutant.name:40} {mutant.file}" for mutant in chosen))
        return 0
    problems = [problem for mutant in chosen if (problem := misplaced(mutant))]
    if problems:
        print("\n".join(problems))
        return 2
    start = time.perf_counter()
    with runners(arguments.jobs) as available, ThreadPoolExecutor(arguments.jobs) as pool:
        if not pass_as_they_are(chosen, available, pool, arguments.jobs):
            return 2
        survivors = [name for name in pool.map(lambda mutant: survives(mutant, available), chosen) if name]
    if survivors:
        print(f"survived: {', '.join(survivors)}")
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} mutants killed in {time.perf_counter() - start:.0f} s")
    return 1 if survivors else 0


def misplaced(mutant: Mutant) -> str | None:
    """Why a mutant cannot be applied, or None."""
    found = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return None if found == 1 else f"{mutant.name}: its text occurs {found} times in {mutant.file}, not once"


def pass_as_they_are(
    chosen: Sequence[Mutant], available: queue.Queue[Runner], pool: ThreadPoolExecutor, jobs: int
) -> bool:
    """Whether all tests pass on an unchanged copy; says so where not."""
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    print(f"{len(tests)} tests on the code as it is", flush=True)

    def run(part: Sequence[str]) -> tuple[int, str]:
        with copied() as copy, borrowed(available) as runner:
            return runner.run(copy, part)

    for code, output in pool.map(run, [tests[start::jobs] for start in range(min(jobs, len(tests)))]):
        if code != PASSED:
            print(output[-4000:])
            print("they do not pass on the code as it is: mend that first")
            return False
    return True


def survives(mutant: Mutant, available: queue.Queue[Runner]) -> str | None:
    """Apply one mutant to a copy and run its tests; returns its name where none failed."""
    with copied() as copy, borrowed(available) as runner:
        start = time.perf_counter()
        file = copy / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = runner.run(copy, mutant.tests)
    reason = next((line[1:].strip() for line in output.splitlines() if line.startswith("E  ")), "")
    outcome = {PASSED: "SURVIVED", FAILED: "killed"}.get(code, f"broken (pytest exit code {code})")
    if any(text in reason for text in NO_KILL):
        outcome = "broken"
    print(f"{outcome:9} {mutant.name} ({time.perf_counter() - start:.0f} s)  {reason[:100]}", flush=True)
    if outcome.startswith("broken"):
        print(output[-3000:], flush=True)
    return None if outcome == "killed" else mutant.name


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

    def run(self, root: Path, tests: Sequence[str]) -> tuple[int, str]:
        """Exit code and output of pytest on a tree; one that takes too long has failed."""
        assert self._process.stdin is not None
        output = root / "pytest.out"
        print(
            json.dumps({"root": str(root), "tests": list(tests), "output": str(output)}),
            file=self._process.stdin,
            flush=True,
        )
        process = self._answer("pid")
        timer = threading.Timer(TIMEOUT_S, os.killpg, (process, signal.SIGKILL))
        timer.start()
        code = self._answer("code")
        timer.cancel()
        text = output.read_text(encoding="utf-8", errors="replace")
        return (FAILED, f"{text}\ntimed out after {TIMEOUT_S} s") if code == -signal.SIGKILL else (code, text)

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


if __name__ == "__main__":
    sys.exit(main())
