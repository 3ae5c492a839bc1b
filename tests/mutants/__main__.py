"""Run the mutants: first their tests on the code as it is, which must pass, then on each mutant, where one must fail.

    python -m tests.mutants [NAME ...] [--jobs 2]

Exit code 0 only where every mutant was killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
# pytest's exit codes: a collection error (2) or a wrong test name (4) is no kill
PASSED, FAILED = 0, 1


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
        print("\n".join(f"{mutant.name:34} {mutant.file}" for mutant in chosen))
        return 0
    problems = [problem for mutant in chosen if (problem := misplaced(mutant))]
    if problems:
        print("\n".join(problems))
        return 2
    baseline = sorted({test for mutant in chosen for test in mutant.tests})
    print(f"{len(baseline)} tests on the code as it is", flush=True)
    code, output = run_tests(ROOT, baseline)
    if code != PASSED:
        print(output[-4000:])
        print("they do not pass on the code as it is: mend that first")
        return 2
    with ThreadPoolExecutor(arguments.jobs) as pool:
        survivors = [name for name in pool.map(survives, chosen) if name]
    killed = len(chosen) - len(survivors)
    if survivors:
        print(f"survived: {', '.join(survivors)}")
    print(f"{killed} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


def misplaced(mutant: Mutant) -> str | None:
    """Why a mutant cannot be applied, or None."""
    found = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return None if found == 1 else f"{mutant.name}: its text occurs {found} times in {mutant.file}, not once"


def survives(mutant: Mutant) -> str | None:
    """Apply one mutant to a copy and run its tests; returns its name where none failed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sartor-mutant-") as folder:
        copy = Path(folder)
        for name in ("src", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = run_tests(copy, mutant.tests)
    outcome = {PASSED: "SURVIVED", FAILED: "killed"}.get(code, f"broken (pytest exit code {code})")
    print(f"{outcome:9} {mutant.name} ({time.perf_counter() - start:.0f} s)", flush=True)
    if code not in (PASSED, FAILED):
        print(output[-3000:], flush=True)
    return None if code == FAILED else mutant.name


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest on a tree whose `src` comes first."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "SARTOR_SHARED": os.environ.get("SARTOR_SHARED", str(ROOT.parent / "shared")),
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        return FAILED, f"timed out after {TIMEOUT_S} s: {error.output}"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
