"""How much the embedded demonstration gains, over several seeds; slow (minutes a seed).

    python -m benchmarks.demo                       # three fine-tuning seeds on the bundled world
    python -m benchmarks.demo --world-seed 11       # a fresh world: its own textbook, base and conversations
    python -m benchmarks.demo --without-pretraining # the same fine-tuning on a base with random weights

Appends one line per seed to benchmarks/demo.csv: held-out questions right before and after in wordings that the
conversations use (all of them for every fact about the test entities), after in wordings never seen, and the time that
fine-tuning took.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sartor.demo.ask import write_answers
from sartor.demo.conversations import to_messages
from sartor.demo.recipe import (
    ASSETS_SEED,
    BASE_FOLDER,
    CONVERSATIONS_FILE,
    RECIPE_FILE,
    assets,
    build_model,
    fine_tuning_config,
    make_assets,
)
from sartor.demo.score import Verdict, judge, share_right
from sartor.demo.world import NUM_TAUGHT_WORDINGS, Group, World, make_world

RESULTS = Path(__file__).with_name("demo.csv")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of fine-tuning")
    world = parser.add_mutually_exclusive_group()
    world.add_argument("--world-seed", type=int, default=ASSETS_SEED, help="other than the bundled one: made first")
    world.add_argument("--assets", type=Path, help="folder that `python -m sartor.demo.recipe` wrote")
    parser.add_argument(
        "--without-pretraining", action="store_true", help="control: random weights instead of the base"
    )
    parser.add_argument("--group", choices=[Group.TEST.value, Group.DEV.value], default=Group.TEST.value)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV to append to")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        made = arguments.assets or assets()
        if arguments.world_seed != ASSETS_SEED:
            made = Path(scratch) / "assets"
            print(json.dumps(make_assets(arguments.world_seed, made)))
        world = make_world(json.loads((made / RECIPE_FILE).read_text(encoding="utf-8"))["seed"])
        for seed in arguments.seeds:
            row = measure(world, made, seed, Group(arguments.group), is_control=arguments.without_pretraining)
            print(json.dumps(row))
            append(arguments.out, row)


def measure(world: World, made: Path, seed: int, group: Group, *, is_control: bool) -> dict[str, Any]:
    """Fine-tune once and examine before and after."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from sartor import SFTTrainer
    from sartor.chat.sample import Speaker, load

    base = load(made / BASE_FOLDER, device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(made / BASE_FOLDER)
    model = build_model(tokenizer, seed) if is_control else base.model
    rows = [json.loads(line) for line in (made / CONVERSATIONS_FILE).read_text(encoding="utf-8").splitlines()]
    before = examine(Speaker(model, tokenizer), world, group, range(NUM_TAUGHT_WORDINGS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=fine_tuning_config(folder, seed),
            train_dataset=Dataset.from_list([{"messages": to_messages(row)} for row in rows]),
            processing_class=tokenizer,
        )
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    tuned = Speaker(trainer.model, trainer.processing_class)
    after = examine(tuned, world, group, range(NUM_TAUGHT_WORDINGS))
    num_wordings = len(world.entities[0].kind.attributes[0].wordings)
    unseen = examine(tuned, world, group, range(NUM_TAUGHT_WORDINGS, num_wordings))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "world_seed": world.seed,
        "group": group.value,
        "base": "random weights" if is_control else "pretrained",
        "seed": seed,
        "num_questions": len(after),
        "right_before": f"{share_right(before):.4f}",
        "right_after": f"{share_right(after):.4f}",
        "right_after_unseen_wordings": f"{share_right(unseen):.4f}",
        "train_seconds": f"{seconds:.1f}",
        "threads": torch.get_num_threads(),
        "cpu": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }


def examine(speaker: Any, world: World, group: Group, wordings: Sequence[int]) -> list[Verdict]:
    """Every fact about the group's entities in each of these wordings."""
    asked = [(fact, fact.question(wording)) for fact in world.facts(group) for wording in wordings]
    written = write_answers(speaker, [question for _, question in asked])
    return [judge(fact, text) for (fact, _), text in zip(asked, written, strict=True)]


def append(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
