"""Run the mutants: first their tests on the code as it is, which must pass, then on each mutant, where one must fail.

    python -m tests.mutants [NAME ...] [--jobs 2]

Exit code 0 only where every mutant was killed.
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.running import FAILED, PASSED, ROOT, Runner, borrowed, copied, pass_as_they_are, reason_of, runners

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
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if not pass_as_they_are(tests, available, pool, arguments.jobs):
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


def survives(mutant: Mutant, available: queue.Queue[Runner]) -> str | None:
    """Apply one mutant to a copy and run its tests; returns its name where none failed."""
    with copied() as copy, borrowed(available) as runner:
        start = time.perf_counter()
        file = copy / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = runner.run(copy, mutant.tests)
    reason = reason_of(output)
    outcome = {PASSED: "SURVIVED", FAILED: "killed"}.get(code, f"broken (pytest exit code {code})")
    if any(text in reason for text in NO_KILL):
        outcome = "broken"
    print(f"{outcome:9} {mutant.name} ({time.perf_counter() - start:.0f} s)  {reason[:100]}", flush=True)
    if outcome.startswith("broken"):
        print(output[-3000:], flush=True)
    return None if outcome == "killed" else mutant.name


if __name__ == "__main__":
    sys.exit(main())
