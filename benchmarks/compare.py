"""Tokens per second and peak memory: trl at the tutorial's settings, trl at its best, and Sartor; alternating, on the
same rows.

    python -m benchmarks.compare
    python -m benchmarks.compare --data rows.jsonl --tokenizer tokenizer.json --rounds 5

Every measurement is a process of its own, so that none inherits another's memory.  The variants take turns, round after
round; what is printed, and appended to benchmarks/compare.csv, are the 20th, 50th and 80th percentile over the rounds.
Parameters are float32 on both sides, and each comparison has the same compute dtype on both sides.

Default: a random Llama of 49 million parameters ("quick": hidden 576, MLP 1536, 8 layers, 9 heads, vocabulary 50304,
    tied),
and the embedded conversations with the embedded tokenizer.  `--model` takes a folder with a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, records
from benchmarks.settings import QUICK, conversations, load_tokenizer

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    library: str
    options: dict[str, Any]
    environment: dict[str, str]


TUTORIAL = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_length": 650}
# The fastest that was found for trl: blocks of 1,024 tokens, one at a time, without recomputation.
PACKED = {
    **TUTORIAL,
    "max_length": 1024,
    "packing": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 3,
}
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # what `sartor train` sets; trl is measured as installed

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("trl, tutorial", "trl", {**TUTORIAL, "gradient_checkpointing": True, "bf16": False}, {}),
        Variant("trl, best", "trl", {**PACKED, "gradient_checkpointing": False, "bf16": False}, {}),
        Variant(
            "sartor, recomputing", "sartor", {**TUTORIAL, "gradient_checkpointing": True, "bf16": False}, HUGE_PAGES
        ),
        Variant("sartor, default", "sartor", {**TUTORIAL, "bf16": False}, HUGE_PAGES),
        Variant(
            "sartor, 768 tokens at once", "sartor", {**TUTORIAL, "bf16": False, "micro_batch_tokens": 768}, HUGE_PAGES
        ),
        Variant(
            "sartor, whole batch at once",  # still less memory than trl at its best
            "sartor",
            {**TUTORIAL, "bf16": False, "micro_batch_tokens": 4096, "loss_chunk_rows": 2048},
            HUGE_PAGES,
        ),
        Variant("trl, tutorial, bf16=True", "trl", {**TUTORIAL, "gradient_checkpointing": True, "bf16": True}, {}),
        Variant(
            "sartor, tutorial, bf16=True",
            "sartor",
            {**TUTORIAL, "gradient_checkpointing": True, "bf16": True},
            HUGE_PAGES,
        ),
    )
}


def worker(arguments: argparse.Namespace) -> None:
    """One measurement in this process; prints a line of JSON."""
    variant = VARIANTS[arguments.worker]
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback

    if variant.library == "trl":
        from trl import SFTConfig, SFTTrainer
    else:
        from sartor import SFTConfig, SFTTrainer  # type: ignore[assignment]
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.model)
    torch.manual_seed(0)
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(LlamaConfig(**QUICK))
    rows = conversations(arguments.data)
    steps = 1 + arguments.steps
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        options = {**variant.options}
        if variant.library == "trl" and options.get("bf16"):
            options["use_cpu"] = not torch.cuda.is_available()  # trl refuses bf16=True on a CPU without it
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            learning_rate=2e-5,
            **options,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        memory = machine.PeakMemory()
        trainer.train()
        peak = memory.above_start_bytes()
    tokens = [
        record["num_tokens"] for record in trainer.state.log_history if "num_tokens" in record and "loss" in record
    ]
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    speed = (tokens[steps - 1] - tokens[0]) / (times[steps - 1] - times[0])
    plan = getattr(trainer, "plan", None)
    dtype = plan.compute_dtype if plan is not None else "bfloat16" if options.get("bf16") else "float32"
    utilization = speed * flops_per_token(trainer) / machine.matrix_rate(dtype=dtype)
    result = {"tokens_per_second": speed, "peak_bytes": peak, "losses": losses, "utilization": utilization}
    print(json.dumps(result))


def flops_per_token(trainer: Any) -> float:
    """Operations of forward and backward per token of these rows, the same count for both libraries: recomputation,
    padding and logits of what is no target are work, not progress."""
    from sartor.engine.flops import step_flops
    from sartor.engine.traits import read_traits

    data = trainer.train_dataset
    if "seq_lengths" in data.column_names:
        lengths = [length for block in data["seq_lengths"] for length in block]
    else:
        lengths = [len(ids) for ids in data["input_ids"]]
    return step_flops(read_traits(trainer.model), lengths, sum(lengths) - len(lengths)) / sum(lengths)


def main() -> int:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="JSONL rows with question, reasoning and answer (default: the embedded conversations)"
    )
    parser.add_argument("--tokenizer", help="a tokenizer.json or a folder (default: the embedded one)")
    parser.add_argument("--model", help="a model's folder (default: a random Llama of 49 million parameters)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps; one more is run first")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--csv", type=Path, default=HERE / "compare.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return 0
    names = arguments.only or list(VARIANTS)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for round_number in range(arguments.rounds):
        for name in names:
            result = measure(name, arguments)
            found[name].append(result)
            print(
                f"round {round_number + 1}: {name:30} {result['tokens_per_second']:8.1f} tokens/s  "
                f"{result['peak_bytes'] / 1e9:6.2f} GB above start",
                flush=True,
            )
    report(found, arguments)
    return 0


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant in a new process."""
    command = [sys.executable, "-m", "benchmarks.compare", "--worker", name, "--steps", str(arguments.steps)]
    for option in ("data", "tokenizer", "model"):
        if getattr(arguments, option):
            command += [f"--{option}", getattr(arguments, option)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **VARIANTS[name].environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _shares(results: list[dict[str, Any]]) -> list[float]:
    return [result["utilization"] for result in results]


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """Percentiles, ratios to trl, and a row per variant in the CSV."""
    rows = []
    for name, results in found.items():
        speeds = [result["tokens_per_second"] for result in results]
        p20, p50, p80 = records.percentiles(speeds)
        peak = statistics.median(result["peak_bytes"] for result in results)
        rows.append(
            {
                "variant": name,
                "library": VARIANTS[name].library,
                "options": json.dumps(VARIANTS[name].options, sort_keys=True),
                "environment": json.dumps(VARIANTS[name].environment, sort_keys=True),
                "data": Path(arguments.data).name if arguments.data else "embedded",
                "tokenizer": Path(arguments.tokenizer).name if arguments.tokenizer else "embedded",
                "model": Path(arguments.model).name if arguments.model else "quick",
                "rounds": len(results),
                "steps": arguments.steps,
                "tokens_per_second_p20": round(p20, 1),
                "tokens_per_second_p50": round(p50, 1),
                "tokens_per_second_p80": round(p80, 1),
                "peak_bytes_above_start": int(peak),
                "utilization": round(statistics.median(shares), 3) if (shares := _shares(results)) else "",
                "first_loss": round(results[0]["losses"][0], 6),
            }
        )
    records.append(arguments.csv, rows)
    print()
    for row in rows:
        line = f"{row['variant']:30} {row['tokens_per_second_p50']:8.1f} tokens/s"
        line += f"  {row['peak_bytes_above_start'] / 1e9:6.2f} GB"
        for base in ("trl, tutorial", "trl, best", "trl, tutorial, bf16=True"):
            other = next((candidate for candidate in rows if candidate["variant"] == base), None)
            if other is not None and other is not row and ("bf16" in base) == ("bf16" in row["variant"]):
                line += (
                    f"  {row['tokens_per_second_p50'] / other['tokens_per_second_p50']:.2f}x speed and "
                    f"{row['peak_bytes_above_start'] / other['peak_bytes_above_start']:.2f}x memory of '{base}'"
                )
        if row["utilization"] != "":
            line += f"  {row['utilization']:.0%} of the measured matrix rate"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
