"""A training under a real limit on its memory: short rows for two epochs, and one of 8,000 tokens in the third.

    python -m tests.run.long_row FOLDER {sartor,trl} ROOM_MB

The limit (`RLIMIT_DATA`) is what stands in memory before training plus ROOM_MB.  The last line is JSON: what became
of it.
"""

import importlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONG_TOKENS = 8_000
ROWS_PER_EPOCH = 6


def rows(passes: str) -> Iterator[dict[str, list[int]]]:
    """Rows of 40 tokens; in the third pass, the fourth row is long."""
    done = len(Path(passes).read_bytes())
    for number in range(ROWS_PER_EPOCH):
        length = LONG_TOKENS if done == 2 and number == 3 else 40
        ids = [5 + (number * 7 + place) % 80 for place in range(length)]
        yield {"input_ids": ids, "labels": ids}
    with Path(passes).open("ab") as file:
        file.write(b".")


def data_bytes() -> int:
    """What the limit counts: private writable memory, resident or not."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def main(folder: str, library: str, room_mb: int) -> None:
    """Train, and say how it ended."""
    import datasets

    from tests.hf import tiny

    passes = Path(folder) / "passes"
    passes.write_bytes(b"")
    model = tiny.make_model(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=6,
        max_position_embeddings=LONG_TOKENS,
        initializer_range=0.02,
    )
    options: dict[str, Any] = {
        "output_dir": f"{folder}/run",
        "max_steps": 3 * ROWS_PER_EPOCH // 2,
        "per_device_train_batch_size": 2,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    stream = datasets.IterableDataset.from_generator(rows, gen_kwargs={"passes": str(passes)})
    module = importlib.import_module(library)
    trainer = module.SFTTrainer(model, module.SFTConfig(**options), train_dataset=stream, processing_class=tokenizer)
    passes.write_bytes(b"")  # a look at the first rows is no pass
    limit = data_bytes() + (room_mb << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ended: dict[str, Any] = {"library": library, "error": None}
    try:
        trainer.train()
    except (RuntimeError, MemoryError) as error:
        ended["error"] = str(error).splitlines()[0][:300]
    if library == "sartor":
        ended["incidents"] = list(trainer.plan.incidents)
        ended["checkpointing"] = trainer.plan.gradient_checkpointing
    ended["steps"] = trainer.state.global_step
    ended["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(ended))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
