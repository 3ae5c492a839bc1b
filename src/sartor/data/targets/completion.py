"""Where the completion of a conversation begins, where the tokens of its prompt alone do not tell.

What comes in: rows of prompt and completion as messages whose tokens do not begin with those of the prompt alone: the
template writes the prompt otherwise once an answer follows, or tokens merge across the border.  What goes out: ids, and
how many of them are the prompt.  What it keeps true: the completion begins where its first answer is proven to begin
(see `targets`); where tokens would merge across it, the row is cut there, as in `turn_tokens`; what cannot be proven is
a problem that names its row.

trl trains from where both rows of tokens part, which may be far within the prompt: a template that puts the system
message before the last question (Mistral) parts at the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import TrainingRow
from sartor.data.targets.audit import end_texts
from sartor.data.targets.prover import Start, Unproven, provers
from sartor.data.targets.turn_tokens import TurnTokenizer
from sartor.data.templates.rendering import note_refusal, tools_of


class CompletionStarts:
    """Finds where completions begin, and counts them."""

    def __init__(self, tokenizer: Any, end_tokens: Sequence[str], start: Start) -> None:
        """`start`: how well the prompt must agree with what stands before the answer."""
        self._end_tokens = end_texts(tokenizer, end_tokens)
        self._turn_tokenizer = TurnTokenizer(tokenizer)
        # A start may be proven where the template writes no end; that is said elsewhere.
        self._provers = provers(tokenizer, self._end_tokens, start=start, append_eot=True)

    def can_prove(self, row: TrainingRow) -> bool:
        """Whether the completion begins with an answer; what a user or a tool says is asked for by no prompt."""
        return bool(self._end_tokens) and isinstance(row.body, list) and row.body[0]["role"] == "assistant"

    def encode(self, row: TrainingRow, problems: ProblemLog, tally: Counter[str]) -> tuple[list[int], int]:
        """Ids of a row, and how many of them are the prompt; nothing where there is a problem."""
        messages, tools = row.messages, tools_of(row)
        number = len(messages) - len(row.body)
        try:
            proof = self._provers.of(tools).prove(messages, tools, row.template_keywords, [number])
            ids, num_prompt_tokens, is_cut = self._turn_tokenizer.split(proof.unended, proof.turns[0].start)
        except Unproven as error:
            problems.add(error.kind, row.where, str(error), messages)
            return [], 0
        except Exception as error:
            note_refusal(problems, row, error)
            return [], 0
        tally["completions proven"] += 1
        tally["completions cut"] += is_cut
        return ids, num_prompt_tokens

    @staticmethod
    def notes(tally: Counter[str]) -> list[str]:
        """What is worth saying about the rows that are in the tally."""
        if not (number := tally["completions proven"]):
            return []
        cut = (
            f"; {tally['completions cut']:,} of them are cut there, because their tokens would merge with the "
            "prompt's, and their ids differ from trl's"
            if tally["completions cut"]
            else ""
        )
        return [
            f"In {number:,} rows the prompt alone has other tokens than before its completion: where the completion "
            f"begins is proven by rendering with provenance{cut}."
        ]
