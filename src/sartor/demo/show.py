"""`sartor demo`: the whole job on the embedded default, shown step by step.

In: a seed and a folder.  Out: a fine-tuned model in that folder, and on the console everything that led there, measured
in this run.  Nothing is canned: every answer, share and failure printed is what the models on this machine said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from sartor.demo.ask import write_answers
from sartor.demo.conversations import to_messages
from sartor.demo.recipe import BASE_FOLDER, CONVERSATIONS_FILE, RECIPE_FILE, assets, fine_tuning_config
from sartor.demo.score import judge
from sartor.demo.screen import OFF_SUBJECT, Answered, Screen
from sartor.demo.world import NUM_TAUGHT_WORDINGS, Fact, Group, World, make_world

if TYPE_CHECKING:
    from rich.console import Console

    from sartor.chat.sample import Speaker

WORDINGS_PER_FACT = 2


def held_out_questions(world: World) -> list[tuple[Fact, str]]:
    """Every fact about the test entities, in two of the wordings that conversations use, each wording equally often."""
    step = NUM_TAUGHT_WORDINGS // WORDINGS_PER_FACT
    return [
        (fact, fact.question((index + step * turn) % NUM_TAUGHT_WORDINGS))
        for index, fact in enumerate(world.facts(Group.TEST))
        for turn in range(WORDINGS_PER_FACT)
    ]


def unseen_questions(world: World) -> list[tuple[Fact, str]]:
    """Every fact about the test entities once, in a wording that no conversation uses."""
    return [
        (fact, fact.question(index % (len(fact.attribute.wordings) - NUM_TAUGHT_WORDINGS) + NUM_TAUGHT_WORDINGS))
        for index, fact in enumerate(world.facts(Group.TEST))
    ]


def examine(speaker: Speaker, asked: Sequence[tuple[Fact, str]]) -> list[Answered]:
    """Ask, and judge what was written."""
    written = write_answers(speaker, [question for _, question in asked])
    return [
        Answered(fact, question, text, judge(fact, text)) for (fact, question), text in zip(asked, written, strict=True)
    ]


def run(*, seed: int, folder: Path, console: Console, note: str = "") -> None:
    """Show it all on `console`; `seed` is that of the fine-tuning (row order), the world is the bundled one."""
    bundled = json.loads((assets() / RECIPE_FILE).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (assets() / CONVERSATIONS_FILE).read_text(encoding="utf-8").splitlines()]
    world = make_world(bundled["seed"])
    asked = held_out_questions(world)
    screen = Screen(console)

    screen.introduction(bundled, len(rows), note)  # before the imports, which take seconds

    from datasets import Dataset
    from transformers import AutoTokenizer

    from sartor import SFTTrainer
    from sartor.chat.sample import Speaker, load
    from sartor.report.progress import TrainingProgress

    base = load(assets() / BASE_FOLDER, device="cpu", dtype="float32")
    before = examine(base, asked)
    screen.base(before)

    progress = TrainingProgress(stream=cast("TextIO", console.file))
    trainer = SFTTrainer(
        model=base.model,
        args=fine_tuning_config(str(folder), seed),
        train_dataset=Dataset.from_list([{"messages": to_messages(row)} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(assets() / BASE_FOLDER),
        callbacks=[progress],
    )
    screen.data(trainer.train_dataset, trainer.processing_class)
    screen.training(trainer.args)
    started = time.monotonic()
    with progress.alone_in(trainer):
        trainer.train()
    seconds = time.monotonic() - started
    trainer.save_model(str(folder))

    tuned = Speaker(trainer.model, trainer.processing_class)
    after, unseen = examine(tuned, asked), examine(tuned, unseen_questions(world))
    screen.answers(before, after)
    screen.shares(before, after, unseen)
    off_subject = write_answers(tuned, [question for question, _ in OFF_SUBJECT])
    screen.failures(after, unseen, off_subject)
    screen.next_steps(folder, seconds)
