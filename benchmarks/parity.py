"""Whether Sartor computes what trl computes: the same rows in both, step by step, in float32.

    python -m benchmarks.parity
    python -m benchmarks.parity --model SmolLM2-135M --data rows.jsonl

Both libraries train the same model on the same rows, from the same seed, in one process one after the other, without
clipping and at a constant learning rate.  Printed: loss, gradient norm, tokens and rows of every step on both sides,
and the differences.  Exit code 1 where one is larger than it may be.  A line is appended to benchmarks/parity.csv.

Default: the embedded base model and conversations.  `--real` takes SmolLM2-135M's real weights, from the Hub or, where
there is none, from a package.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.settings import conversations, embedded, load_tokenizer

FIRST_LOSS, FIRST_NORM, EVERY_LOSS = 1e-6, 1e-5, 1e-4
"""Largest differences: relative ones of the first step's loss and gradient norm, an absolute one of every loss.

Rounding alone gives 1e-7, 1e-6 and 1e-6 where documents are laid flat instead of padded; a mean of means, a leaking
document or another row in a batch gives 1e-4 and more in the first step already.
"""

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 10,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_length": None,
    "logging_steps": 1,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


@dataclass
class Trace:
    """What one library did."""

    log: list[dict[str, float]] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    """Numbers of the rows that went through the model in each step, in that order."""
    seconds: float = 0.0

    def column(self, name: str) -> list[float]:
        """A logged figure, step by step."""
        return [record[name] for record in self.log if "loss" in record]

    def keys(self) -> list[tuple[str, ...]]:
        """The names in every line of the log, in order."""
        return [tuple(record) for record in self.log]


def trace(library: str, model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], **options: Any) -> Trace:
    """Train `model` in place with `trl` or `sartor`, and watch what goes through its decoder.

    Args:
        library: whose `SFTTrainer` is used.
        model: float32; for rows to be seen in order its layout must not be the padded one.
        tokenizer: with what the rows need.
        rows: conversations or texts.
        **options: of SFTConfig, in place of `OPTIONS`.
    """
    from datasets import Dataset
    from transformers import TrainerCallback

    if library == "trl":
        from trl import SFTConfig, SFTTrainer
    else:
        from sartor import SFTConfig, SFTTrainer  # type: ignore[assignment]

        options = {"micro_batch_tokens": 1 << 16, **options}  # a batch at once: in pieces its rows come in any order
    found = Trace()
    passed: list[int] = []

    def watch(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids, is_real = named["input_ids"], named.get("attention_mask")
        if is_real is not None and is_real.dim() == 2:
            ids = ids[is_real.bool()]
        if module.training:
            passed.extend(ids.flatten().tolist())

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            found.rows.append(_rows_in(passed, prepared))
            passed.clear()

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=folder, **{**OPTIONS, **options}),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=[Watcher()],
        )
        prepared = {tuple(ids): number for number, ids in enumerate(trainer.train_dataset["input_ids"])}
        handle = model.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
        start = time.perf_counter()
        trainer.train()
        found.seconds = time.perf_counter() - start
        handle.remove()
        found.log = list(trainer.state.log_history)
    return found


def _rows_in(tokens: Sequence[int], prepared: dict[tuple[int, ...], int]) -> tuple[int, ...]:
    """Which rows a stream of tokens is made of.

    Example: [5, 6, 7, 8, 5, 6] of the rows {(5, 6): 0, (7, 8): 1} is 0, 1, 0.
    """
    lengths = sorted({len(ids) for ids in prepared}, reverse=True)
    found: list[int] = []
    place = 0
    while place < len(tokens):
        candidates = (tuple(tokens[place : place + length]) for length in lengths)
        ids = next((ids for ids in candidates if ids in prepared), None)
        if ids is None:
            raise ValueError(f"what went through the model is no row of the data set, from its token {place} on")
        found.append(prepared[ids])
        place += len(ids)
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """Two traces of the same training."""

    trl: Trace
    sartor: Trace

    @property
    def first_loss(self) -> float:
        """Relative difference."""
        return _relative(self.trl.column("loss")[0], self.sartor.column("loss")[0])

    @property
    def first_norm(self) -> float:
        """Relative difference of the gradient's norm."""
        return _relative(self.trl.column("grad_norm")[0], self.sartor.column("grad_norm")[0])

    @property
    def every_loss(self) -> float:
        """Largest absolute difference."""
        pairs = zip(self.trl.column("loss"), self.sartor.column("loss"), strict=True)
        return max(abs(theirs - ours) for theirs, ours in pairs)

    def problems(self) -> list[str]:
        """What is not equal that should be."""
        found = []
        for name, difference, limit in (
            ("loss of the first step", self.first_loss, FIRST_LOSS),
            ("gradient norm of the first step", self.first_norm, FIRST_NORM),
            ("losses", self.every_loss, EVERY_LOSS),
        ):
            if not difference <= limit:  # not a number is a difference too
                found.append(f"{name}: {difference:.1e} apart, at most {limit:.0e} is allowed")
        if self.trl.rows != self.sartor.rows:
            found.append("the rows of the steps, or their order")
        for name in ("num_tokens", "learning_rate", "epoch"):
            if self.trl.column(name) != self.sartor.column(name):
                found.append(f"{name}: {self.trl.column(name)} and {self.sartor.column(name)}")
        if self.trl.keys() != self.sartor.keys():
            found.append(f"the log's keys: {self.trl.keys()} and {self.sartor.keys()}")
        return found

    def table(self) -> str:
        """A line per step."""
        columns = [(one.column("loss"), one.column("grad_norm")) for one in (self.trl, self.sartor)]
        lines = [f"{'step':>4} {'tokens':>8}  {'loss, trl':>12} {'sartor':>12} {'norm, trl':>12} {'sartor':>12}  rows"]
        for step, tokens in enumerate(self.sartor.column("num_tokens")):
            figures = [column[step] for kind in zip(*columns, strict=True) for column in kind]
            shown = " ".join(f"{figure:12.8f}" for figure in figures)
            same = "the same" if self.trl.rows[step] == self.sartor.rows[step] else "OTHERS"
            lines.append(f"{step + 1:4} {tokens:8.0f}  {shown}  {same}: {', '.join(map(str, self.sartor.rows[step]))}")
        return "\n".join(lines)


def _relative(theirs: float, ours: float) -> float:
    return abs(theirs - ours) / max(abs(theirs), 1e-30)


def load(folder: str | Path) -> Any:
    """A model in float32 parameters, whatever it was saved in."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def compare(
    folder: str | Path, rows: Sequence[dict[str, Any]], tokenizer: str | None = None, **options: Any
) -> Comparison:
    """Train the model of a folder with both libraries."""
    traces = [
        trace(library, load(folder), load_tokenizer(tokenizer, str(folder)), rows, **options)
        for library in ("trl", "sartor")
    ]
    return Comparison(*traces)


def main() -> int:
    """Compare, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSONL rows with question, reasoning and answer (default: embedded)")
    parser.add_argument("--tokenizer", help="a tokenizer.json or a folder (default: the model's)")
    parser.add_argument("--model", help="a model's folder (default: the embedded base model)")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M's real weights")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--csv", type=Path, default=Path(__file__).resolve().parent / "parity.csv")
    arguments = parser.parse_args()
    folder, name = arguments.model or embedded() / "base", arguments.model and Path(arguments.model).name
    if arguments.real:
        from sartor.demo.real_weights import obtain

        weights = obtain(print)
        folder, name = weights.path, weights.name
    rows = conversations(arguments.data)[: arguments.rows]
    compared = compare(folder, rows, arguments.tokenizer, max_steps=arguments.steps)
    problems = compared.problems()
    print(compared.table())
    print(
        f"\nfirst step: loss {compared.first_loss:.1e} apart (relative), gradient norm {compared.first_norm:.1e}; "
        f"all losses within {compared.every_loss:.1e}"
    )
    print("\n".join(f"NOT EQUAL: {problem}" for problem in problems) or "rows, num_tokens and log keys are the same")
    row = {
        "model": name or "embedded",
        "data": Path(arguments.data).name if arguments.data else "embedded",
        "rows": len(rows),
        "steps": arguments.steps,
        "first_loss_trl": compared.trl.column("loss")[0],
        "first_loss_sartor": compared.sartor.column("loss")[0],
        "first_loss_relative": f"{compared.first_loss:.2e}",
        "first_grad_norm_relative": f"{compared.first_norm:.2e}",
        "every_loss_absolute": f"{compared.every_loss:.2e}",
        "problems": len(problems),
    }
    records.append(arguments.csv, [row])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
