"""What saving in the background costs a run.

    python -m benchmarks.saving
    python -m benchmarks.saving --rounds 3 --save_steps 20 --checkpoints 2

A Llama of 49 million parameters is trained in full with AdamW on the CPU, with a checkpoint every `--save_steps`
steps.  For each checkpoint three times are taken: how long training waited, how much of a processor the thread used
that wrote it meanwhile, and how long it took until it was on the disk.  The cost is the first two over the time of
the steps between two checkpoints, as if the processor time of the thread were all taken from training; with one
thread of `--threads`, that is its share of them.  A second run, written at once, says what the background saves.

With `--rounds`, whole runs that save and whole runs that do not take turns, and what is compared is the time of
`train()` and the processor time of the process, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.settings import QUICK


@dataclass
class Times:
    """Seconds, one entry for each checkpoint, and for each step."""

    waited: list[float] = field(default_factory=list)
    thread: list[float] = field(default_factory=list)
    until_saved: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    whole: float = 0.0
    """Of `train()`."""
    whole_cpu: float = 0.0
    """Of all threads of the process, meanwhile."""


def measure(given: argparse.Namespace, *, in_background: bool = True, saves: bool = True) -> Times:
    """One training."""
    import torch
    from datasets import Dataset
    from tests.trainer import tiny
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from sartor import SFTConfig, SFTTrainer
    from sartor.run import checkpoint
    from sartor.trainer.checkpoints import Checkpoints

    times = Times()
    begun: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            times.steps.append(time.perf_counter() - self.started)

    save, work = Checkpoints.save, checkpoint.Writer._work

    def timed_save(self: Checkpoints) -> str:
        begun.append(time.perf_counter())
        path = save(self)
        times.waited.append(time.perf_counter() - begun[-1])
        return path

    def timed_work(self: checkpoint.Writer, job: Callable[[], None]) -> None:
        started = time.thread_time()
        work(self, job)
        times.thread.append(time.thread_time() - started)
        times.until_saved.append(time.perf_counter() - begun[-1])

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    folder = tempfile.mkdtemp(prefix="sartor-saving-", dir=given.folder)
    rows = [{"input_ids": torch.randint(0, 50_000, (given.tokens,)).tolist()} for _ in range(given.rows)]
    Checkpoints.save, checkpoint.Writer._work = timed_save, timed_work  # type: ignore[method-assign]
    try:
        trainer = SFTTrainer(
            LlamaForCausalLM(LlamaConfig(**QUICK)),
            SFTConfig(
                folder,
                per_device_train_batch_size=given.rows,
                max_steps=given.save_steps * given.checkpoints,
                save_strategy="steps" if saves else "no",
                save_steps=given.save_steps,
                save_total_limit=2,
                save_in_background=in_background,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                logging_steps=1000,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny.make_tokenizer(),
            callbacks=[Clock()],
        )
        began, cpu_began = time.perf_counter(), time.process_time()
        trainer.train()
        times.whole, times.whole_cpu = time.perf_counter() - began, time.process_time() - cpu_began
    finally:
        Checkpoints.save, checkpoint.Writer._work = save, work  # type: ignore[method-assign]
        shutil.rmtree(folder, ignore_errors=True)
    return times


def compare(given: argparse.Namespace) -> None:
    """Whole runs, taking turns; appends a row."""
    found: dict[bool, list[Times]] = {True: [], False: []}
    for number in range(given.rounds):
        for saves in (True, False) if number % 2 == 0 else (False, True):
            found[saves].append(measure(given, saves=saves))
    whole = {saves: statistics.median(times.whole for times in runs) for saves, runs in found.items()}
    cpu = {saves: statistics.median(times.whole_cpu for times in runs) for saves, runs in found.items()}
    row = {
        "tokens_per_step": given.rows * given.tokens,
        "threads": given.threads,
        "steps": given.save_steps * given.checkpoints,
        "save_steps": given.save_steps,
        "rounds": given.rounds,
        "saving_s": round(whole[True], 2),
        "not_saving_s": round(whole[False], 2),
        "cost_percent": round(100 * (whole[True] / whole[False] - 1), 2),
        "saving_cpu_s": round(cpu[True], 2),
        "not_saving_cpu_s": round(cpu[False], 2),
        "cost_cpu_percent": round(100 * (cpu[True] / cpu[False] - 1), 2),
        "waited_s": round(statistics.median(wait for times in found[True] for wait in times.waited), 3),
        "step_s": round(statistics.median(step for times in found[False] for step in times.steps), 3),
    }
    print(row)
    records.append(given.csv or Path(__file__).with_name("saving_runs.csv"), [row])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="of each row")
    parser.add_argument("--rows", type=int, default=8, help="of each step")
    parser.add_argument("--save_steps", type=int, default=4)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where checkpoints are written; default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=0, help="whole runs with and without saving, this many of each")
    parser.add_argument(
        "--csv", type=Path, default=None, help="default: saving.csv or saving_runs.csv, beside this file"
    )
    given = parser.parse_args()
    if given.rounds:
        compare(given)
        return
    rows = []
    for kind, in_background in (("in the background", True), ("at once", False)):
        times = measure(given, in_background=in_background)
        waited, step = statistics.median(times.waited), statistics.median(times.steps)
        thread = statistics.median(times.thread) if times.thread else 0.0
        each = waited + thread / given.threads
        rows.append(
            {
                "kind": kind,
                "tokens_per_step": given.rows * given.tokens,
                "threads": given.threads,
                "step_s": round(step, 3),
                "waited_s": round(waited, 3),
                "thread_cpu_s": round(thread, 3),
                "until_saved_s": round(statistics.median(times.until_saved or times.waited), 3),
                "cost_at_500_steps_percent": round(100 * each / (500 * step), 3),
                "steps_for_2_percent": round(each / (0.02 * step), 1),
            }
        )
        print(
            f"{kind}: training waits {waited:.2f} s for a checkpoint, its thread uses {thread:.2f} s of a processor; "
            f"{rows[-1]['cost_at_500_steps_percent']} % of a run that saves every 500 steps of {step:.2f} s, 2 % where "
            f"it saves every {rows[-1]['steps_for_2_percent']} steps"
        )
    records.append(given.csv or Path(__file__).with_name("saving.csv"), rows)


if __name__ == "__main__":
    main()
