"""Kills runs at random moments, resumes them, and compares what comes out with a run that was never killed.

    python -m tests.kill --n 20 --seed 1
    python -m tests.kill --every-call

One process imports the heavy libraries and forks a child per run, which is killed with SIGKILL: from outside after a
random time, or by itself at a random operation of a random save, which then has files that are half written.  What is
compared is one digest of the final weights, the optimizer, and `metrics.jsonl` without the keys of `TIMING`.  First n
runs are killed once; then n runs are killed twice, the second time after they were resumed.  With `--every-call` runs
are killed at each system call that changes their folder instead (see `kill_calls`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests import kill_calls

TIMING = ("runtime", "per_second", "model_flops_utilization", "peak_memory_bytes")
"""Ends of the keys of `metrics.jsonl` whose values are times and memory, which no two runs share."""


# --- the runs ------------------------------------------------------------------------------------------------------


def full(folder: Path) -> Any:
    """All weights of a bfloat16 model, with dropout, accumulation, two evaluation sets, and logs that saves cut
    through.
    """
    import torch

    from tests.hf import tiny

    return tiny.trainer(
        folder,
        model=tiny.make_model(attention_dropout=0.2, dtype=torch.bfloat16),
        gradient_accumulation_steps=2,
        num_train_epochs=4,
        logging_steps=5,
        eval_dataset={"near": tiny.texts(3), "far": tiny.texts(3, start=40)},
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        load_best_model_at_end=False,
    )


def lora(folder: Path) -> Any:
    """An adapter with dropout, saved at the ends of epochs."""
    import torch
    from peft import LoraConfig

    from tests.hf import tiny

    return tiny.trainer(
        folder,
        model=tiny.make_model(dtype=torch.bfloat16),
        peft_config=LoraConfig(r=4, lora_dropout=0.3, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
        num_train_epochs=3,
        logging_steps=2,
        eval_dataset=tiny.texts(3),
        eval_strategy="epoch",
        save_strategy="epoch",
    )


def packed(folder: Path) -> Any:
    """Packed blocks, noise on the embeddings, rows of like length together, another optimizer."""
    from tests.hf import tiny

    return tiny.trainer(
        folder,
        model=tiny.make_model(attention_dropout=0.2),
        rows=tiny.dataset(tiny.texts(30)),
        packing=True,
        max_length=16,
        neftune_noise_alpha=5.0,
        train_sampling_strategy="group_by_length",
        optim="adafactor",
        max_steps=11,
        logging_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=1,
    )


def stream(folder: Path) -> Any:
    """Rows that can only be read from front to back, shuffled in a buffer, several times."""
    from tests.hf import tiny

    return tiny.trainer(
        folder,
        model=tiny.make_model(attention_dropout=0.2),
        rows=tiny.stream(tiny.texts(9)).shuffle(seed=3, buffer_size=5),
        max_steps=12,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
    )


Result = TypeVar("Result")
SCENARIOS: dict[str, Callable[[Path], Any]] = {"full": full, "lora": lora, "packed": packed, "stream": stream}


@dataclass(frozen=True)
class Plan:
    """When a child dies: after so many seconds, or so many milliseconds into an operation of a save; or never."""

    seconds: float | None = None
    operation: int | None = None
    milliseconds: float = 0.0


@dataclass
class Outcome:
    """Of a child that was not killed."""

    digest: str
    seconds: float
    operations: int
    resumed_from: int


def digest_of(trainer: Any, folder: Path) -> str:
    """Of weights, optimizer and metrics."""
    checksum = hashlib.blake2b(digest_of_weights(trainer).encode(), digest_size=16)
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = {key: value for key, value in json.loads(line).items() if not key.endswith(TIMING)}
        checksum.update(json.dumps(record).encode())
    return checksum.hexdigest()


def digest_of_weights(trainer: Any) -> str:
    """Of weights and optimizer."""
    from sartor.run import state

    checksum = hashlib.blake2b(digest_size=16)
    for name, parameter in trainer.model.named_parameters():
        checksum.update(name.encode() + parameter.detach().float().numpy().tobytes())
    tree, tensors = state.pack(trainer.optimizer.state_dict(), "optimizer")
    checksum.update(json.dumps(tree, sort_keys=True).encode())
    for name in sorted(tensors):
        checksum.update(name.encode() + tensors[name].double().numpy().tobytes())
    return checksum.hexdigest()


def train(name: str, folder: Path, plan: Plan) -> Outcome:
    """Begin a run, or go on with it."""
    import torch

    torch.set_num_threads(1)
    count = count_operations(plan)
    started = time.perf_counter()
    if plan.seconds is not None:
        threading.Timer(plan.seconds, die).start()
    trainer = SCENARIOS[name](folder)
    resumed: list[int] = []
    trainer.say = lambda message: resumed.append(message.count("going on from"))
    trainer.train(resume_from_checkpoint="if_any")
    seconds = time.perf_counter() - started
    return Outcome(digest_of(trainer, folder), seconds, count(), sum(resumed))


def die() -> None:
    """As a power cut, but for what the system has in its cache."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_operations(plan: Plan) -> Callable[[], int]:
    """Count the steps of saves, and die within the one that the plan names; returns how many there were."""
    from sartor.run import checkpoint, model_files, saving, snapshot, tensor_file

    snapshot.SMALL_BYTES = 0  # tiny tensors are read while training goes on, as a real model's are
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            nonlocal done
            done += 1
            if done == plan.operation:
                if plan.milliseconds:
                    threading.Timer(plan.milliseconds / 1000, die).start()
                else:
                    die()
            return function(*arguments, **keywords)

        return wrapped

    for name in ("write_state", "seal", "publish", "delete", "_checksums", "_to_disk"):
        setattr(checkpoint, name, counted(getattr(checkpoint, name)))
    tensor_file.write = counted(tensor_file.write)
    model_files.ModelFiles.write_weights = counted(model_files.ModelFiles.write_weights)
    saving.save_model_alone = counted(saving.save_model_alone)
    return lambda: done


# --- the killing ---------------------------------------------------------------------------------------------------


def in_child(action: Callable[[], Result], kind: type[Result]) -> Result | None:
    """What `action` returns in a fork of this process, a record of this kind; None where the fork was killed.

    Raises:
        RuntimeError: it failed by itself; with what it printed.
    """
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if process == 0:
            code = 1
            try:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
                outcome = action()
                os.write(write, json.dumps(outcome.__dict__).encode())
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            answer = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status == -signal.SIGKILL:
            return None
        if status != 0:
            output.seek(0)
            raise RuntimeError(output.read()[-4000:])
    return kind(**json.loads(answer))


@dataclass
class Line:
    """One run that was killed, for the table."""

    scenario: str
    moments: list[str]
    saves: int
    """Kills that left a save half done."""
    is_equal: bool


def torment(name: str, reference: Outcome, kills: int, chance: random.Random, in_save: bool) -> Line:
    """Kill a run `kills` times, each time after it was resumed, let it end, and compare."""
    folder = Path(tempfile.mkdtemp(prefix="sartor-kill-"))
    moments, saves = [], 0
    try:
        while len(moments) < kills:
            if in_save:
                plan = Plan(
                    operation=chance.randint(1, reference.operations), milliseconds=chance.choice((0, 0.2, 1.0))
                )
            else:
                plan = Plan(seconds=chance.uniform(0.1, 1.0) * reference.seconds)
            outcome = in_child(lambda plan=plan: train(name, folder, plan), Outcome)  # type: ignore[misc]
            if outcome is not None:  # it was faster than the bullet: the reference ran on a busier machine
                reference.seconds = min(reference.seconds, outcome.seconds)
                shutil.rmtree(folder)
                folder.mkdir()
                moments, saves = [], 0
                continue
            left = sorted(path.name for path in folder.glob("_checkpoint-*"))
            done = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
            saves += bool(left)
            moments.append(f"after step {max(done, default=0)}{', in ' + left[0][1:] if left else ''}")
        outcome = in_child(lambda: train(name, folder, Plan()), Outcome)
        assert outcome is not None
        return Line(name, moments, saves, outcome.digest == reference.digest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(n: int, seed: int, show: Callable[[str], None] = print) -> list[Line]:
    """n runs killed once and n killed twice; a line for each."""
    import_heavy()
    chance = random.Random(seed)
    references: dict[str, Outcome] = {}
    lines = []
    for kills in (1, 2):
        for number in range(n):
            name = list(SCENARIOS)[number % len(SCENARIOS)]
            if name not in references:
                references[name] = never_killed(name)
                show(
                    f"{name}: never killed {references[name].digest}, {references[name].operations} operations in saves"
                )
            line = torment(name, references[name], kills, chance, in_save=(number + number // 4) % 2 == 0)
            lines.append(line)
            word = "equal" if line.is_equal else "DIFFERENT"
            show(f"{len(lines):3} {name:7} {'; again '.join(line.moments):64} {word}")
    return lines


def never_killed(name: str) -> Outcome:
    """The run that all others must equal; twice, to see that it equals itself."""
    outcomes = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="sartor-kill-") as folder:
            outcomes.append(in_child(lambda folder=folder: train(name, Path(folder), Plan()), Outcome))  # type: ignore[misc]
    first, second = outcomes
    assert first is not None
    assert second is not None
    if first.digest != second.digest:
        raise RuntimeError(f"{name}: two runs that were never killed differ: nothing can be compared")
    return second


def import_heavy() -> None:
    """What every child needs, once; no thread may be running when this process forks."""
    import importlib

    for name in ("torch", "datasets", "peft", "transformers.trainer", "transformers.models.llama", "sartor.hf"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def main() -> int:
    """The command line; 0 where all runs came out equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument(
        "--n", type=int, default=20, help="runs that are killed once, and as many that are killed twice"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--every-call",
        nargs="?",
        const="all",
        choices=("folders", "runs", "all"),
        help="kill at each system call that changes the folder: the writing of folders alone, whole runs, or both",
    )
    parser.add_argument("--at-most", type=int, help="kills per situation, spread evenly over the calls; default: all")
    given = parser.parse_args()
    if given.every_call:
        return kill_calls.main(given.every_call, given.at_most)
    started = time.perf_counter()
    lines = run(given.n, given.seed)
    kills = sum(len(line.moments) for line in lines)
    saves = sum(line.saves for line in lines)
    equal = sum(line.is_equal for line in lines)
    print(f"{kills} kills, {saves} inside a save; {equal} of {len(lines)} runs equal the run that was never killed")
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0 if equal == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
