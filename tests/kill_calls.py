"""Kills runs at each system call that changes their folder, resumes them, and compares what comes out.

    python -m tests.kill --every-call

A library in C that is preloaded sees the calls of Python, Rust and C++ alike.  A process imports the heavy libraries,
makes a trainer for each of `SITUATIONS`, and forks a child per kill.  After it: the newest checkpoint that is whole,
under whatever name the kill has left it, is the one that the run goes on from, and it ends with the same weights and
the same optimizer, bit for bit; what an earlier run left is whole for as long as this one has no checkpoint.

Before that, folders alone are written, killed at each call, put in order, killed at each call of that too, and put in
order again.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
_VARIABLE = "SARTOR_KILL_CALLS"
"""Path of the library, in a process that it was loaded into."""
_CHECKPOINT = re.compile(r"_?checkpoint-(\d+)(\.partial|\.replaced)?")


# --- the library ---------------------------------------------------------------------------------------------------


def why_not() -> str | None:
    """Why calls cannot be killed at on this machine; None where they can."""
    from benchmarks import malloc_count

    if sys.platform != "linux":
        return "processes are killed at their system calls on Linux only, by preloading a library"
    if malloc_count.compiler() is None:
        return "there is no C compiler here (cc, gcc or clang) to make the library that kills at a system call"
    return None


def build(library: Path) -> None:
    """Compile the library.

    Raises:
        RuntimeError: that is not possible here; with the reason.
    """
    from benchmarks import malloc_count

    if (reason := why_not()) is not None:
        raise RuntimeError(reason)
    built = subprocess.run(
        [str(malloc_count.compiler()), "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        raise RuntimeError(f"{SOURCE.name} cannot be compiled: {built.stderr.strip()}")


def run_preloaded(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process that has the library.

    Raises:
        RuntimeError: that is not possible here.
    """
    with tempfile.TemporaryDirectory(prefix="sartor-kill-") as folder:
        library = Path(folder) / "kill_calls.so"
        build(library)
        environment = {**os.environ, "LD_PRELOAD": str(library), _VARIABLE: str(library), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *arguments], env=environment, text=True, check=False, **options)


def begin(call: int, folder: Path) -> Callable[[], int]:
    """Count the calls that change a folder from here on, and die at this one (0: at none); returns the count so far."""
    library = ctypes.CDLL(None)
    library.kill_calls_count.restype = ctypes.c_long
    library.kill_calls_at(ctypes.c_long(call), str(folder.resolve()).encode())
    return lambda: int(library.kill_calls_count())


# --- the runs ------------------------------------------------------------------------------------------------------


def fresh(folder: Path) -> Any:
    """Two checkpoints in an empty folder."""
    from tests.hf import tiny

    return tiny.trainer(folder, max_steps=2, save_strategy="steps", save_steps=1)


def twice(folder: Path) -> Any:
    """A checkpoint that is written again at the same step."""
    from transformers import TrainerCallback

    from tests.hf import tiny

    class Again(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
            control.should_save = True
            return control

    return tiny.trainer(
        folder,
        rows=tiny.dataset(tiny.texts(4)),
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        callbacks=[Again()],
    )


def beside(folder: Path) -> Any:
    """Three checkpoints where an earlier run left some: one of the same name, and one too many."""
    from tests.hf import tiny

    return tiny.trainer(folder, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=4)


def earlier(folder: Path) -> Any:
    """The run that was in the folder before, of other weights: checkpoints 2, 4 and 6."""
    from tests.hf import tiny

    return tiny.trainer(folder, max_steps=6, save_strategy="steps", save_steps=2, learning_rate=0.03)


SITUATIONS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any] | None]] = {
    "a fresh folder": (fresh, None),
    "the same step twice": (twice, None),
    "beside an earlier run": (beside, earlier),
}
"""The run, and the one before it in its folder."""


@dataclass
class Ended:
    """A run that was not killed."""

    digest: str
    num_calls: int
    came_from: str
    """The checkpoint that it went on from."""


def train(trainer: Any, folder: Path, resume: str | bool | None, call: int) -> Ended:
    """In a child: train, and die at a call."""
    from tests import kill

    told: list[str] = []
    trainer.say = told.append
    num_calls = begin(call, folder)
    trainer.train(resume_from_checkpoint=resume)
    found = next((match[1] for line in told if (match := re.search(r"going on from .*/(checkpoint-\d+):", line))), "")
    return Ended(kill.digest_of_weights(trainer), num_calls(), found)


def whole(folder: Path, run: int) -> dict[str, int]:
    """Checkpoints of a run that are whole, whatever their names, and their steps."""
    from sartor.run import checkpoint

    found = {}
    for path in folder.iterdir():
        if (match := _CHECKPOINT.fullmatch(path.name)) and checkpoint.run_of(path) == run:
            try:
                checkpoint.verify(path)
            except checkpoint.DamagedError:
                continue
            found[path.name] = int(match[1])
    return found


@dataclass
class Sweep:
    """All kills of one situation."""

    name: str
    num_calls: int
    num_kills: int
    problems: list[str]


# --- folders alone -------------------------------------------------------------------------------------------------


def write_over(folder: Path) -> None:
    """Write `checkpoint-4` where an earlier run's is, and delete the one that is then superfluous."""
    from sartor.run import checkpoint

    new = write(folder, 4, run=2)
    for old in checkpoint.superfluous(new, 1, None):
        checkpoint.delete(old)


def write(folder: Path, step: int, *, run: int) -> Path:
    """A checkpoint of a few bytes."""
    from sartor.run import checkpoint

    target = folder / f"checkpoint-{step}"
    partial = checkpoint.partial_path(target)
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_text(f"run {run}", encoding="utf-8")
    checkpoint.seal(partial, checkpoint.write_state(partial, checkpoint.pack_state({"run": run})), run=run)
    checkpoint.publish(partial, target)
    return target


def killed(action: Callable[[Path], Any], folder: Path, call: int) -> bool:
    """Do it in a child that dies at a call; whether it did."""
    process = os.fork()
    if process == 0:
        begin(call, folder)
        action(folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def sweep_folders() -> Sweep:
    """Kill the writing of a checkpoint, and putting in order what that leaves, at each call."""
    from sartor.run import checkpoint

    done = Sweep("folders alone", 0, 0, [])
    with tempfile.TemporaryDirectory(prefix="sartor-kill-") as temporary:
        before, left, folder = (Path(temporary) / name for name in ("before", "left", "run"))
        write(before, 2, run=1)
        write(before, 4, run=1)
        while True:
            done.num_calls += 1
            copy(before, left)
            if not killed(write_over, left, done.num_calls):
                return done
            expected = 2 if whole(left, 2) else 1
            again = 0
            while True:
                again += 1
                copy(left, folder)
                was_killed = killed(checkpoint.settle, folder, again)
                checkpoint.settle(folder)
                found = checkpoint.newest(folder)
                done.num_kills += 1
                is_right = found.path == folder / "checkpoint-4" and checkpoint.run_of(found.path) == expected
                if not is_right or found.damaged or list(folder.glob("_*")):
                    names = sorted(path.name for path in left.iterdir())
                    done.problems.append(f"call {done.num_calls}, then {again}: {names} became {found}")
                if not was_killed:
                    break


def copy(before: Path, folder: Path) -> None:
    """Make a folder what another one is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)


# --- whole runs ----------------------------------------------------------------------------------------------------


def sweep(name: str, at_most: int | None) -> Sweep:
    """Kill a run at each of its calls, or at so many of them."""
    from tests import kill

    make, make_earlier = SITUATIONS[name]
    with tempfile.TemporaryDirectory(prefix="sartor-kill-") as temporary:
        folder, before = Path(temporary) / "run", Path(temporary) / "before"
        before.mkdir()
        if make_earlier is not None:
            kill.in_child(lambda: train(make_earlier(before), before, None, 0), Ended)
        first = "if_any" if make_earlier is None else None
        trainer = make(folder)
        warm_up(trainer)
        copy(before, folder)
        reference = kill.in_child(lambda: train(trainer, folder, first, 0), Ended)
        assert reference is not None
        calls = range(1, reference.num_calls + 1)
        if at_most is not None:
            calls = calls[:: -(-len(calls) // at_most)]
        problems = []
        for call in calls:
            copy(before, folder)
            kill.in_child(lambda call=call: train(trainer, folder, first, call), Ended)  # type: ignore[misc]
            problem = wrong(trainer, folder, first, reference, had_earlier=make_earlier is not None)
            if problem:
                problems.append(f"{name}, call {call} of {reference.num_calls}: {problem}")
        return Sweep(name, reference.num_calls, len(calls), problems)


def warm_up(trainer: Any) -> None:
    """What is found out once per process, so that no child has to."""
    import torch

    from sartor.run.model_files import model_files
    from sartor.run.setup import matrix_rate

    model_files(trainer.model, lambda parameter: parameter.dtype)
    matrix_rate(torch.device("cpu"), torch.float32)


def wrong(trainer: Any, folder: Path, first: str | None, reference: Ended, *, had_earlier: bool) -> str | None:
    """Go on after a kill; what is not as it must be, in words."""
    from sartor.run import checkpoint
    from tests import kill

    ours = whole(folder, 2 if had_earlier else 1)
    left = f"left: {sorted(path.name for path in folder.iterdir() if path.is_dir())}"
    expected = f"checkpoint-{max(ours.values())}" if ours else ""
    if had_earlier and not ours and set(whole(folder, 1).values()) != {2, 4, 6}:
        return f"a checkpoint of the earlier run is lost, and there is no new one; {left}"
    try:
        ended = kill.in_child(lambda: train(trainer, folder, True if ours else first, 0), Ended)
    except RuntimeError as error:
        return f"the run does not go on: {error}; {left}"
    assert ended is not None
    if ended.came_from != expected:
        return f"it went on from {ended.came_from or 'the start'}, and not from {expected or 'the start'}; {left}"
    if ended.digest != reference.digest:
        return f"it ends with other weights; {left}"
    remains = sorted(path.name for path in folder.glob("_checkpoint-*"))
    found = checkpoint.newest(folder)
    if remains or found.damaged:
        return f"it leaves {remains or found.damaged}; {left}"
    return None


def main(what: str, at_most: int | None) -> int:
    """Folders alone, whole runs, or all; 0 where nothing is wrong."""
    from tests import kill

    if _VARIABLE not in os.environ:
        arguments = ["--every-call", what, *([] if at_most is None else ["--at-most", str(at_most)])]
        return run_preloaded(["-m", "tests.kill", *arguments]).returncode
    started = time.perf_counter()
    actions: list[Callable[[], Sweep]] = [sweep_folders] if what != "runs" else []
    if what != "folders":
        kill.import_heavy()
        actions += [functools.partial(sweep, name, at_most) for name in SITUATIONS]
    sweeps = []
    for action in actions:
        sweeps.append(done := action())
        print(f"{done.name}: {done.num_kills} kills at {done.num_calls} calls, {len(done.problems)} wrong", flush=True)
        for problem in done.problems:
            print(f"  {problem}", flush=True)
    kills, problems = sum(each.num_kills for each in sweeps), sum(len(each.problems) for each in sweeps)
    print(f"after {kills - problems} of {kills} kills the newest checkpoint that was whole was gone on from")
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0 if not problems else 1
