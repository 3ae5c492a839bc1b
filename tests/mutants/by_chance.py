"""Random mutations of what must not break: the engine, batching, the optimizers and checkpoints.

    python -m tests.mutants.by_chance [--n 100] [--seed 1] [--only engine/loss.py]

A seed chooses the same mutations of the same source.  Each runs against the tests of its module, then against those of
its room.  Exit code 0 only where every one failed a test, or is one of equivalent.py.
"""

from __future__ import annotations

import argparse
import difflib
import queue
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.mutations import Mutation, mutations
from tests.mutants.running import PASSED, ROOT, Runner, borrowed, copied, pass_as_they_are, reason_of, runners

SOURCE = ROOT / "src" / "sartor"
FILES = (
    "engine/*.py", "batching/*.py", "optim/*.py", "run/checkpoint*.py", "run/checked_state.py", "run/tensor_file.py",
    "run/snapshot.py", "run/state.py", "run/folder_lock.py", "run/plain_files.py", "run/steps.py",
)  # fmt: skip
"""Patterns below the package."""
FIRST = {
    "checked_state": ("tampered", "state"),
    "checkpoint_writer": ("model_files", "saving"),
    "checkpoints": ("saving", "resume"),
    "flops": ("profiling",),
    "plain_files": ("tampered", "checkpoint"),
    "tensor_file": ("model_files", "checkpoint"),
    "transaction": ("rounded_update", "out_of_memory"),
}
"""Names of the tests of modules whose tests are not called as they are."""
DURABLE = ("checkpoint", "saving", "model_files", "tampered", "out_of_memory", "resume")
THEN = {
    "batching": ("mathematics",),
    "optim": ("stochastic_rounding", "out_of_memory", "resume"),
    "run": DURABLE,
}
"""Names of tests of other rooms that are about what a room does."""
OPTIONS = ("-m", "not slow", "--timeout", "240")
"""pytest's: of each test, so that a loop which does not end is noticed."""
TIMEOUT_S = 1_800
"""Of all tests of a mutation."""

Chosen = tuple[Path, Mutation]


def main(argv: Sequence[str] | None = None) -> int:
    """Run; print a line per mutation, the survivors as differences, and a last line that counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="mutations to run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose path ends so")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--trusted", action="store_true", help="do not run the tests on the code as it is first")
    arguments = parser.parse_args(argv)
    drawn = chosen(arguments.n, arguments.seed, arguments.only)
    if arguments.list:
        print("\n".join(map(named, drawn)))
        return 0
    start = time.perf_counter()
    with runners(arguments.jobs) as available, ThreadPoolExecutor(arguments.jobs) as pool:
        tests = [*OPTIONS, *sorted({file for path, _ in drawn for part in files_for(path) for file in part})]
        if not arguments.trusted and not pass_as_they_are(tests, available, pool, 1):
            return 2
        found = list(pool.map(lambda one: survives(one, available), drawn))
    survivors = [one for one, is_alive in zip(drawn, found, strict=True) if is_alive]
    unnamed = [one for one in survivors if not is_equivalent(one)]
    for path, mutation in unnamed:
        print(f"\nSURVIVED {named((path, mutation))}\n{difference(path, mutation)}")
    counted = f"{len(drawn) - len(survivors)} of {len(drawn)} mutations killed"
    print(f"{counted}, {len(survivors) - len(unnamed)} equivalent, in {time.perf_counter() - start:.0f} s")
    return 1 if unnamed else 0


def chosen(count: int, seed: int, only: str = "") -> list[Chosen]:
    """Mutations of all files, by chance; as many as there are, at most."""
    files = sorted({path for pattern in FILES for path in SOURCE.glob(pattern)})
    every = [
        (path.relative_to(ROOT), mutation)
        for path in files
        if str(path).endswith(only)
        for mutation in mutations(path.read_text(encoding="utf-8"))
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


def files_for(path: Path) -> tuple[list[str], list[str]]:
    """The tests of a module, and those of its room without them: files."""
    room = path.parts[2]
    first = _files(path.stem, below=room) + _files(*FIRST.get(path.stem, ()))
    rest = _files("*", below=room)
    return first, [file for file in dict.fromkeys([*rest, *_files(*THEN.get(room, ()))]) if file not in first]


def _files(*names: str, below: str = ".") -> list[str]:
    """Test files of these names, in their order; none where there is no such folder."""
    folder = ROOT / "tests" / below
    return [str(file.relative_to(ROOT)) for name in names for file in sorted(folder.rglob(f"test_{name}.py"))]


def survives(one: Chosen, available: queue.Queue[Runner]) -> bool:
    """Whether no test fails on a copy with this mutation; says so."""
    path, mutation = one
    reason = ""
    with copied() as copy, borrowed(available) as runner:
        start = time.perf_counter()
        file = copy / path
        file.write_text(mutation.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
        is_alive = True
        for tests in filter(None, files_for(path)):
            code, output = runner.run(copy, [*OPTIONS, *tests], TIMEOUT_S)
            if code != PASSED:
                reason, is_alive = reason_of(output) or output.strip().rpartition("\n")[2], False
                break
    outcome = ("equivalent" if is_equivalent(one) else "SURVIVED") if is_alive else "killed"
    print(f"{outcome:9} {named(one)} ({time.perf_counter() - start:.0f} s)  {reason[:80]}", flush=True)
    return is_alive


def named(one: Chosen) -> str:
    """Where a mutation is and what it changes, in a line."""
    path, mutation = one
    old, new = (" ".join(text.split())[:60] for text in (mutation.old, mutation.new))
    return f"{path.relative_to('src/sartor')}:{mutation.line} {mutation.function}: {old} -> {new}"


def difference(path: Path, mutation: Mutation) -> str:
    """The change as a unified difference."""
    source = (ROOT / path).read_text(encoding="utf-8")
    before, after = source.splitlines(), mutation.applied(source).splitlines()
    return "\n".join(difflib.unified_diff(before, after, str(path), str(path), lineterm="", n=2))


def is_equivalent(one: Chosen) -> bool:
    """Whether it is named in equivalent.py."""
    path, mutation = one
    return any(
        (known.file, known.function, known.old, known.new)
        == (path.as_posix().removeprefix("src/sartor/"), mutation.function, mutation.old, mutation.new)
        for known in EQUIVALENT
    )


if __name__ == "__main__":
    sys.exit(main())
