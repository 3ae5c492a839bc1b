"""What the plan and the rehearsal add to a run: `python -m benchmarks.rehearsal`, three minutes on two free cores.

A Llama of 49 million parameters is trained in full with AdamW on the CPU for 100 steps, as a user would, with
`rehearse` and memory's options not set.  Within that one run the plan's search and the rehearsal (its forecast by
simulation included) are timed, and each is set against all the rest of `train()`; in processor seconds too, which other
programs disturb less.

    python -m benchmarks.rehearsal
    python -m benchmarks.rehearsal --steps 100 --rows 12 --data ../shared/data/gsm8k_chat.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.settings import QUICK, conversations, load_tokenizer

CSV = Path(__file__).parent / "rehearsal.csv"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    from sartor import SFTConfig, SFTTrainer
    from sartor.run import setup, training

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    spent = {"plan": (0.0, 0.0), "rehearsal": (0.0, 0.0)}

    def timed(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            wall, processor = time.perf_counter(), time.process_time()
            found = inner(*arguments, **keywords)
            spent[name] = (time.perf_counter() - wall, time.process_time() - processor)
            return found

        return run

    setup.planned = timed("plan", setup.planned)
    training.rehearse_run = timed("rehearsal", training.rehearse_run)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            LlamaForCausalLM(LlamaConfig(**QUICK)),
            SFTConfig(
                output_dir=folder,
                max_steps=given.steps,
                per_device_train_batch_size=given.rows,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(conversations(given.data)),
            processing_class=load_tokenizer(given.tokenizer),
        )
        wall, processor = time.perf_counter(), time.process_time()
        trainer.train()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if trainer.memory is None:
        raise SystemExit("the run was too short for a rehearsal: give more --steps or --rows")
    rest = wall - sum(part[0] for part in spent.values())
    rest_processor = processor - sum(part[1] for part in spent.values())
    foreseen, measured = (trainer.memory[one]["peak_bytes"] for one in ("foreseen", "measured"))
    return {
        "steps": given.steps,
        "rows": given.rows,
        "threads": given.threads,
        "tokens": trainer.total_train_tokens,
        "rehearsed_tokens": sum(trainer.memory["document_lengths"]),
        "foreseen_bytes": foreseen,
        "measured_bytes": measured,
        "plan_s": round(spent["plan"][0], 2),
        "rehearsal_s": round(spent["rehearsal"][0], 2),
        "rest_s": round(rest, 2),
        "plan_processor_s": round(spent["plan"][1], 2),
        "rehearsal_processor_s": round(spent["rehearsal"][1], 2),
        "rest_processor_s": round(rest_processor, 2),
        "plan_percent": round(100 * spent["plan"][1] / rest_processor, 2),
        "added_percent": round(100 * spent["rehearsal"][1] / rest_processor, 2),
    }


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=12, help="of an optimizer batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default=None, help="default: the embedded conversations")
    parser.add_argument("--tokenizer", default=None, help="default: the embedded one")
    parser.add_argument("--csv", type=Path, default=CSV)
    given = parser.parse_args()
    row = measure(given)
    print(row)
    records.append(given.csv, [row])


if __name__ == "__main__":
    main()
