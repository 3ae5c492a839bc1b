"""What the rehearsal adds to a run: `python -m benchmarks.rehearsal`.

A Llama of 49 million parameters is trained in full with AdamW on the CPU for 100 steps, as a user would, with
`rehearse` not set.  Within that one run the rehearsal is timed, its forecast by simulation included, and set against
all the rest of `train()`; in processor seconds too, which other programs disturb less.

    python -m benchmarks.rehearsal
    python -m benchmarks.rehearsal --steps 100 --rows 12 --data ../shared/data/gsm8k_chat.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
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
    from sartor.trainer import training

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    spent: list[float] = []
    inner = training.rehearse_run

    def timed(*arguments: Any) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        inner(*arguments)
        spent.extend((time.perf_counter() - wall, time.process_time() - processor))

    training.rehearse_run = timed
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
    foreseen, measured = (trainer.memory[one]["peak_bytes"] for one in ("foreseen", "measured"))
    return {
        "steps": given.steps,
        "rows": given.rows,
        "threads": given.threads,
        "tokens": trainer.total_train_tokens,
        "rehearsed_tokens": sum(trainer.memory["document_lengths"]),
        "foreseen_bytes": foreseen,
        "measured_bytes": measured,
        "rehearsal_s": round(spent[0], 2),
        "rest_s": round(wall - spent[0], 2),
        "rehearsal_processor_s": round(spent[1], 2),
        "rest_processor_s": round(processor - spent[1], 2),
        "added_percent": round(100 * spent[1] / (processor - spent[1]), 2),
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
