"""What `sartor demo` prints: pages of plain text that rich colours where there is a terminal.

In: what the run measured and the models wrote.  Kept true: model text is shown as it was written (only cut at a stated
length), and the failures are drawn from this run's own wrong answers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sartor.demo.score import MEASURE, Verdict, mentions, share_right
from sartor.demo.world import Fact
from sartor.wording import typed

if TYPE_CHECKING:
    from rich.console import Console

NUM_SHOWN = 3
OFF_SUBJECT = (
    ("What is the capital of France?", "Paris"),
    ("How much is two and two?", "four"),
    ("Who wrote Hamlet?", "Shakespeare"),
)
"""Questions for which neither book nor conversations prepare, and a word that any right answer has."""
LONGEST_SHOWN = 300
"""Characters of an answer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One question of an examination, and what became of it."""

    fact: Fact
    question: str
    text: str
    """As it was written, special tokens included."""
    verdict: Verdict


class Screen:
    """The pages, in the order in which they are shown."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def introduction(self, bundled: dict[str, Any], num_conversations: int, note: str) -> None:
        """What there is, and what is going to happen."""
        self._title("Sartor, from a base model to one that talks")
        millions = bundled["num_parameters"] / 1e6
        self._say(
            f"The base model has {millions:.2f} million parameters and has read one textbook, about the moons, beasts, "
            f"minerals and plants of an invented world: {bundled['num_documents']:,} short texts and not one question. "
            "It can continue a sentence. It cannot hold a conversation."
        )
        self._say(
            f"{num_conversations:,} bundled conversations, in the voice of a naturalist who has had enough, ask about "
            "one half of that world. We fine-tune on them, and then ask about the other half, which the model has only "
            "ever read about."
        )
        if note:
            self._say(note)

    def base(self, before: Sequence[Answered]) -> None:
        """The base model, asked a question."""
        self._title("1. The base model, asked a question")
        first = before[_spread(len(before))[0]]
        self._exchange(first.question, {"base": first.text})
        self._say("It goes on as its textbook would. That was no answer.")

    def data(self, dataset: Any, tokenizer: Any) -> None:
        """How long the conversations are, and what of one of them is trained."""
        from sartor.data.inspection.prepared import example_of, length_histogram, lengths_of
        from sartor.data.inspection.sample import tokens_of
        from sartor.data.inspection.terminal import coloured, plain

        self._title("2. The conversations")
        self._say("Tokens of each, the chat template's included:")
        self._plain(length_histogram(lengths_of(dataset), min(self.console.width, 100)))
        tokens = tokens_of(example_of(dataset, 0), tokenizer)
        if self.console.is_terminal and not self.console.no_color:
            self._say("What the model is trained to write is bright; what it only reads is dim:")
            self.console.print(coloured(tokens))
        else:
            self._say("What the model is trained to write stands between ⟦ and ⟧; the rest it only reads:")
            self._plain(plain(tokens))

    def training(self, args: Any) -> None:
        """What is about to run."""
        self._title("3. Fine-tuning")
        self._say(
            f"All weights, {args.num_train_epochs:g} epochs, {args.per_device_train_batch_size} conversations a step, "
            f"learning rate {args.learning_rate:g} falling to 0, about a minute on two cores:"
        )

    def answers(self, before: Sequence[Answered], after: Sequence[Answered]) -> None:
        """The same questions before and after."""
        self._title("4. The same questions, before and after")
        for at in _spread(len(after)):
            self._exchange(after[at].question, {"before": before[at].text, "after": after[at].text})

    def shares(self, before: Sequence[Answered], after: Sequence[Answered], unseen: Sequence[Answered]) -> None:
        """How many held-out questions were answered rightly, and by which measure."""
        self._title("5. The whole examination")
        facts = [one.fact for one in after]
        num_entities = len({fact.entity.name for fact in facts})
        self._say(
            f"{len(facts)} questions about {num_entities} entities that no conversation names; {MEASURE}. "
            f"Naming each property's most frequent value would be right in {percent(most_frequent_share(facts))}."
        )
        rambling = sum(mentions(one.fact, one.text) for one in before) / len(before)
        shares = [percent(share_right([one.verdict for one in answered])) for answered in (before, after, unseen)]
        self._plain(f"held-out questions right: before {shares[0]}, after {shares[1]}")
        self._plain(f"in wordings that no conversation uses: after {shares[2]}")
        self._plain(f"what the base wrote mentions the right value somewhere: {percent(rambling)}")

    def failures(self, after: Sequence[Answered], unseen: Sequence[Answered], off_subject: Sequence[str]) -> None:
        """A held-out question that it still gets wrong, and one off its subject."""
        self._title("6. What it still gets wrong")
        wrong = [one for one in (*after, *unseen) if one.verdict is not Verdict.RIGHT]
        if wrong:
            self._exchange(wrong[0].question, {"after": wrong[0].text})
            self._say(f"Wrong: it {wrong[0].verdict}. The textbook says {wrong[0].fact.value}.")
        else:
            self._say("No held-out question was answered wrongly in this run.")
        missed = [
            (question, text)
            for (question, word), text in zip(OFF_SUBJECT, off_subject, strict=True)
            if word.lower() not in text.lower()
        ]
        for question, text in missed[:1]:
            self._exchange(question, {"after": text})
            self._say("Off its subject it does not know that it does not know: it has read one book.")

    def next_steps(self, folder: Path, seconds: float) -> None:
        """How to go on."""
        self._title("How to go on")
        self._plain(f"fine-tuning took {seconds:.0f} s; the model is in {folder}")
        commands = {
            typed("chat", str(folder)): "talk to it",
            typed("demo", "--real"): "the same on a real model's weights, in a few minutes",
            typed("train", "--model", "MODEL", "--data", "rows.jsonl"): "your model, your conversations",
        }
        width = max(map(len, commands))
        for command, purpose in commands.items():
            self._plain(f"  {command:<{width}}  {purpose}")

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def _say(self, text: str) -> None:
        """A paragraph, wrapped to the console."""
        self.console.print(Text(text))

    def _plain(self, text: str) -> None:
        """A line that scripts may look for: never wrapped."""
        self.console.print(Text(text), soft_wrap=True)

    def _exchange(self, question: str, answers: dict[str, str]) -> None:
        """A question and what was written, line ends and special tokens visible."""
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("  question", Text(question, style="bold cyan"))
        for name, text in answers.items():
            shown = text.strip().replace("\n", " ⏎ ")
            table.add_row(name, Text(shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]} …"))
        self.console.print(table)


def percent(share: float) -> str:
    """`93.4 %`, which does not round to 100 what is below it."""
    return f"{math.floor(share * 1000) / 10:.1f} %"


def _spread(length: int) -> list[int]:
    """`NUM_SHOWN` places, far apart: questions are ordered kind by kind."""
    return [(2 * turn + 1) * length // (2 * NUM_SHOWN) for turn in range(NUM_SHOWN)]


def most_frequent_share(facts: Sequence[Fact]) -> float:
    """Share of `facts` that one fixed value per property gets right, if the best value is chosen with hindsight."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        values[f"{fact.entity.kind.name} {fact.attribute.key}"][fact.value] += 1
    return sum(max(counts.values()) for counts in values.values()) / len(facts)
