"""A training under a real limit on its memory.

    python -m tests.memory.limited FOLDER {sartor,trl} ROOM_MB

The limit (`RLIMIT_DATA`) is what stands in memory before training plus ROOM_MB; 0: none.  The weights are left in
FOLDER; the last line is JSON: what became of it, and by how much memory grew.
"""

import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from sartor.memory import limits
from tests.run.long_row import data_bytes

LENGTHS = (512, 480, 300, 460, 200, 512, 350, 410, 128, 505, 440, 90, 270, 500, 333, 512)


def main(folder: str, library: str, room_mb: int) -> None:
    """Train, and say how it ended."""
    import datasets
    import torch

    from tests.hf import tiny

    model = tiny.make_model(
        vocab_size=8_192,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.02,
    )
    rows = [{"input_ids": [5 + (number * 7 + place) % 80 for place in range(n)]} for number, n in enumerate(LENGTHS)]
    options: dict[str, Any] = {
        "output_dir": f"{folder}/run",
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_checkpointing": None if library == "sartor" else False,
        "learning_rate": 1e-5,
        "max_length": 512,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    module = importlib.import_module(library)
    data = datasets.Dataset.from_list(rows)
    trainer = module.SFTTrainer(model, module.SFTConfig(**options), train_dataset=data, processing_class=tokenizer)
    before, resident = data_bytes(), limits.anonymous_bytes()
    if room_mb:
        limit = before + (room_mb << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ended: dict[str, Any] = {"library": library, "error": None}
    try:
        trainer.train()
    except (RuntimeError, MemoryError) as error:
        ended["error"] = str(error).splitlines()[0][:300]
    if library == "sartor":
        plan = trainer.plan
        ended["incidents"] = list(plan.incidents)
        ended["setting"] = [plan.micro_batch_tokens, plan.gradient_checkpointing, plan.recomputed_layers]
        ended["foreseen_mb"] = plan.predicted_bytes.get("peak", 0) >> 20
    ended["steps"] = trainer.state.global_step
    ended["grown_mb"] = (_peak_bytes() - resident) >> 20
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
    print(json.dumps(ended))


def _peak_bytes() -> int:
    """The most that was resident; of what the limit counts, the system keeps no peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
