"""What `sartor plan` says for a few published models and devices: `python -m benchmarks.plans > docs/plans.txt`.

Configurations are written by hand (benchmarks/memory_models.py): no hub is asked.  Rates and CUDA's rules are listed
and not measured, and the text says so.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from benchmarks import memory_models
from sartor.cli.main import main

TUTORIAL = ("--max_length", "650", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4")
CASES = (
    ("SmolLM2-135M", (*TUTORIAL, "--gpu", "T4")),
    ("Llama-3.1-8B", ("--gpu", "RTX4090")),
    ("Llama-3.1-8B", ("--gpu", "L40S")),
    ("Llama-3.1-8B", ("--gpu", "L40S", "--stochastic_rounding")),
    ("Llama-3.1-8B", ("--gpu", "H100")),
)
"""(model, options)."""


def write() -> None:
    """Every case with its command line."""
    with tempfile.TemporaryDirectory() as folder:
        for name, options in CASES:
            path = Path(folder) / name
            config = memory_models.published(name)
            config.dtype = "bfloat16"  # as they are published
            config.save_pretrained(path)
            print(f"$ sartor plan --model {name} {' '.join(options)}\n", flush=True)
            with contextlib.chdir(folder):
                main(["plan", "--model", name, *options])
            print("\n", flush=True)


if __name__ == "__main__":
    write()
