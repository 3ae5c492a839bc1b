"""What saving in the background costs a run.

    python -m benchmarks.saving
    python -m benchmarks.saving --rounds 3 --every 20

A Llama of 49 million parameters is trained in full with AdamW on the CPU.  By itself, one run is measured: it is
divided into stretches of `--every` steps, every second of which begins with a checkpoint, and neighbours are
compared.  A checkpoint costs what its stretch takes longer: training that waits, and the thread that takes cores from
it.  Wall-clock time is what counts, and says it only where no other program runs: the shorter the stretches, the less
of a machine's moods is in it.  Processor time of all threads of the process is what can be compared nearly anywhere;
that of the thread which writes (`thread_cpu_s`) anywhere.

With `--rounds`, whole runs that save every `--every` steps and whole runs that never save take turns.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.settings import QUICK

WARM_STEPS = 3
"""Not measured: memory is allocated, states are made."""


@dataclass
class Times:
    """Seconds by the clock and of all cores, at the ends of stretches, and what the run said of itself."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waited: float = 0.0
    """For checkpoints, all together."""
    waited_in_steps: float = 0.0
    """Of it, before optimizer steps."""
    until_saved: list[float] = field(default_factory=list)
    """From the beginning of each checkpoint until it was on the disk."""
    thread_cpu: list[float] = field(default_factory=list)
    """Of the thread that wrote each checkpoint: processor seconds."""

    def note(self) -> None:
        """A stretch ends here."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def train(given: argparse.Namespace, *, stretches: int, is_saved: Callable[[int], bool]) -> Times:
    """One training of so many stretches; `is_saved` says which of them begin with a checkpoint."""
    import torch
    from datasets import Dataset
    from tests.hf import tiny
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from sartor import SFTConfig, SFTTrainer
    from sartor.run.checkpoints import Checkpoints
    from sartor.run.snapshot import Writer

    times = Times()
    every = given.every

    class Divides(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            number, rest = divmod(state.global_step - WARM_STEPS, every)
            if rest == 0 and number >= 0:
                times.note()
                control.should_save = number < stretches and is_saved(number)

    tell, work = Checkpoints.tell, Writer._work

    def heard(self: Checkpoints) -> None:
        times.waited, times.waited_in_steps = self.waited_s, self.waited_in_steps_s

    def timed(self: Writer, job: Callable[[], None]) -> None:
        started, used = time.perf_counter(), time.thread_time()
        work(self, job)
        times.until_saved.append(time.perf_counter() - started)
        times.thread_cpu.append(time.thread_time() - used)

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    folder = tempfile.mkdtemp(prefix="sartor-saving-", dir=given.folder)
    rows = [{"input_ids": torch.randint(0, 50_000, (given.tokens,)).tolist()} for _ in range(given.rows)]
    Checkpoints.tell, Writer._work = heard, timed  # type: ignore[method-assign]
    try:
        SFTTrainer(
            LlamaForCausalLM(LlamaConfig(**QUICK)).to(getattr(torch, given.dtype)),
            SFTConfig(
                folder,
                per_device_train_batch_size=given.rows,
                max_steps=WARM_STEPS + every * stretches,
                save_strategy="steps",
                save_steps=1_000_000,
                save_total_limit=2,
                use_cpu=True,
                bf16=False,
                rehearse=False,
                report_to="none",
                disable_tqdm=True,
                logging_steps=1_000_000,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny.make_tokenizer(),
            callbacks=[Divides()],
        ).train()
    finally:
        Checkpoints.tell, Writer._work = tell, work  # type: ignore[method-assign]
        shutil.rmtree(folder, ignore_errors=True)
    return times


def neighbours(given: argparse.Namespace) -> dict[str, Any]:
    """One run: what stretches that begin with a checkpoint take longer than their neighbours."""
    times = train(given, stretches=2 * given.pairs + 1, is_saved=lambda number: number % 2 == 1)
    row: dict[str, Any] = {"kind": "neighbours", "checkpoints": given.pairs}
    for name, ends in (("wall", times.wall), ("cpu", times.cpu)):
        taken = [end - start for start, end in pairwise(ends)]
        without = taken[::2]
        costs = [
            taken[2 * pair + 1] - (without[pair] + without[pair + 1]) / 2 for pair in range(given.pairs)
        ]  # a neighbour on each side: a machine that becomes slower cancels out
        step = statistics.mean(without) / given.every
        cost = statistics.mean(costs)
        error = statistics.stdev(costs) / len(costs) ** 0.5 if len(costs) > 1 else 0.0
        row |= {
            f"{name}_step_s": round(step, 3),
            f"{name}_cost_s": round(cost, 3),
            f"{name}_error_s": round(error, 3),
            f"{name}_percent": round(100 * cost / (given.every * step), 2),
            f"{name}_steps_for_2_percent": round(max(cost, 0) / (0.02 * step), 1),
        }
    return row | _of_saves(times, given.pairs)


def whole_runs(given: argparse.Namespace) -> dict[str, Any]:
    """Runs that save and runs that never do, taking turns."""
    found: dict[bool, list[Times]] = {True: [], False: []}
    for number in range(given.rounds):
        for saves in (True, False) if number % 2 == 0 else (False, True):
            found[saves].append(train(given, stretches=given.stretches, is_saved=lambda _, saves=saves: saves))
    row: dict[str, Any] = {"kind": "whole runs", "checkpoints": given.stretches * given.rounds}
    for name in ("wall", "cpu"):
        taken = {
            saves: [getattr(times, name)[-1] - getattr(times, name)[0] for times in runs]
            for saves, runs in found.items()
        }
        on, off = statistics.median(taken[True]), statistics.median(taken[False])
        row |= {
            f"{name}_step_s": round(off / given.stretches / given.every, 3),
            f"{name}_cost_s": round((on - off) / given.stretches, 3),
            f"{name}_percent": round(100 * (on / off - 1), 2),
        }
    last = found[True][-1]
    return row | _of_saves(last, given.stretches)


def _of_saves(times: Times, count: int) -> dict[str, float]:
    return {
        "waited_s": round(times.waited / count, 3),
        "waited_in_steps_s": round(times.waited_in_steps / count, 3),
        "until_saved_s": round(statistics.median(times.until_saved), 3),
        "thread_cpu_s": round(statistics.median(times.thread_cpu), 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="of each row")
    parser.add_argument("--rows", type=int, default=2, help="of each step")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--pairs", type=int, default=6, help="checkpoints of the run that is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="that the model arrives in: bfloat16 is rounded to be saved")
    parser.add_argument("--folder", default=None, help="where checkpoints are written; default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=0, help="whole runs with and without saving, this many of each")
    parser.add_argument("--stretches", type=int, default=3, help="checkpoints of each whole run")
    parser.add_argument("--csv", type=Path, default=None, help="default: saving_neighbours.csv or saving_runs.csv here")
    given = parser.parse_args()
    settings = {
        "dtype": given.dtype,
        "tokens_per_step": given.rows * given.tokens,
        "threads": given.threads,
        "every": given.every,
    }
    row = settings | (whole_runs(given) if given.rounds else neighbours(given))
    print(row)
    name = "saving_runs.csv" if given.rounds else "saving_neighbours.csv"
    records.append(given.csv or Path(__file__).with_name(name), [row])


if __name__ == "__main__":
    main()
