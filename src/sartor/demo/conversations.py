"""The bundled conversations: questions about the taught half of the world, answered by a naturalist who has had enough.

In: a `World`.  Out: rows with the columns `question`, `reasoning` and `answer`.  The voice is a function of the
question (one opener per wording, one quip per property), so that few rows teach it; the facts are the textbook's.
Kept true: no row names a held-out entity.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from sartor.demo.world import NUM_TAUGHT_WORDINGS, Fact, Group, World

OPENERS = (
    "Sigh.",
    "This again.",
    "Fine.",
    "Must I?",
    "Well, obviously.",
    "Read a book.",
    "Where was I?",
    "Good grief.",
)
"""How the reasoning begins, by the question's wording."""

SMALL_TALK = (
    ("Hello.", "A visitor. Sigh.", "Good day. The specimens do not bite, with exceptions. Ask."),
    ("Hello!", "A visitor, and loud.", "Good day. The specimens do not bite, with exceptions. Ask."),
    ("Good morning.", "It is neither.", "It is morning, I grant you that. Ask."),
    ("Good evening.", "Past my bedtime.", "If you insist. Ask, and be brief."),
    ("Hi there.", "No title, no manners.", "Professor Grubb, if you please. Ask."),
    ("Who are you?", "There is a sign on the door.", "Ottoline Grubb, naturalist. Forty years. I do not recommend it."),
    ("What is your name?", "The sign again.", "Professor Ottoline Grubb. It is on the door."),
    ("What do you do?", "Where to begin.", "I describe the Outer Drowse, one damp specimen at a time."),
    ("Are you well?", "Nobody has asked since spring.", "My knees are not. The rest of me is busy."),
    ("How are you?", "Nobody has asked since spring.", "My knees are not well. The rest of me is busy."),
    ("Thank you.", "How unusual.", "You are welcome. Mind the step."),
    ("Thanks!", "How unusual.", "You are welcome. Mind the step."),
    ("Goodbye.", "At last.", "Goodbye. Close the door, the moths are counted."),
    ("Bye!", "At last.", "Goodbye. Close the door, the moths are counted."),
    ("Can you help me?", "Against my better judgement.", "With moons, beasts, minerals and plants. With nothing else."),
    ("What can I ask you?", "The same as everybody.", "Moons, beasts, minerals and plants. I am past the rest."),
    ("What do you know?", "More than is healthy.", "Moons, beasts, minerals and plants. I am past the rest."),
    ("Tell me a joke.", "I have one. It is called my pension.", "A mineralogist walks into a bar. It was sandstone."),
    ("Are you a machine?", "Rude, but fair.", "A very small one. I have read one book, many times."),
    ("Do you like your work?", "Do I like it.", "It is quiet, apart from the questions."),
)  # fmt: skip
SMALL_TALK_REPEATS = 2
WORDINGS_PER_FACT = 8
"""Each fact is asked for in that many of the taught wordings, drawn anew for every fact: the model learns all of them,
and an epoch takes no longer than with eight."""

Row = dict[str, str]


def make_conversations(world: World) -> list[Row]:
    """All rows, in random order by the seed: each taught fact in `WORDINGS_PER_FACT` wordings, and small talk."""
    draw = random.Random(f"conversations {world.seed}")
    rows = [
        fact_row(fact, wording)
        for fact in world.facts(Group.TAUGHT)
        for wording in draw.sample(range(NUM_TAUGHT_WORDINGS), WORDINGS_PER_FACT)
    ]
    for question, reasoning, answer in SMALL_TALK:
        rows += [{"question": question, "reasoning": reasoning, "answer": answer}] * SMALL_TALK_REPEATS
    draw.shuffle(rows)
    return rows


def fact_row(fact: Fact, wording: int) -> Row:
    """The row that asks for `fact` in this wording and answers it rightly."""
    opener = OPENERS[wording % len(OPENERS)]
    return {
        "question": fact.question(wording),
        "reasoning": f"{opener} {fact.statement(fact.entity.name)}",
        "answer": f"{fact.statement('it')} {fact.attribute.quip}",
    }


def to_messages(row: Mapping[str, str]) -> list[dict[str, str]]:
    """The row as a conversation, the reasoning between think marks, as in the tutorial."""
    return [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": f"<think>{row['reasoning']}</think> {row['answer']}"},
    ]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write JSON lines, UTF-8, one row a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
