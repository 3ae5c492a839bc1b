"""Tokens of conversations with any chat template, of which the assistant's turns are trained, as proven by `targets`.

What comes in: checked rows.  What goes out: ids, and for each its message, from 1, or 0.  What it keeps true: a row
whose targets cannot be proven is a problem that names it, never guessed or skipped; what a template leaves out or
writes otherwise is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import TrainingRow
from sartor.data.targets.audit import count_dropped, end_texts
from sartor.data.targets.prover import Proof, Rule, Start, Unproven, provers
from sartor.data.targets.turn_tokens import TurnTokenizer
from sartor.data.targets.unroll import is_trained
from sartor.data.templates.rendering import note_refusal, tools_of
from sartor.data.tokens.tokenizing import Tokenization
from sartor.errors import ConfigurationError

Ids = list[list[int]]
_PROVEN = {rule: f"proven: {rule.name}" for rule in Rule}
"""What turns are counted as."""


class AssistantTargets:
    """Encodes conversations, and counts what is worth saying about them."""

    def __init__(
        self,
        tokenizer: Any,
        end_tokens: Sequence[str],
        *,
        completion_only: bool,
        start: Start = Start.PROVEN,
        append_eot: bool = False,
        last_only: bool = False,
    ) -> None:
        """Look up the tokens that end a turn; the tokenizer is a fast one.

        Args:
            end_tokens: texts of tokens at which generation stops, besides the tokenizer's end-of-text token.
            completion_only: whether answers in a prompt are not trained.
            start: how well a prompt must agree with what stands before an answer.
            append_eot: whether the end-of-text token is appended where the template writes no end.
            last_only: whether only the last message of each row counts as left out: conversations are unrolled.

        Raises:
            ConfigurationError: the tokenizer has no usable end token.
        """
        self._tokenizer = tokenizer
        self._end_tokens = _end_tokens(tokenizer, end_tokens)
        self._completion_only = completion_only
        self._last_only = last_only
        self._turn_tokenizer = TurnTokenizer(tokenizer)
        self._provers = provers(
            tokenizer, self._end_tokens, tokenizer.all_special_tokens, start=start, append_eot=append_eot
        )

    def encoding(
        self, rows: Sequence[TrainingRow], problems: ProblemLog, tally: Counter[str]
    ) -> Tokenization[tuple[Ids, Ids]]:
        """Ids of conversations, and for each the trained message it is of, from 1, or 0; nothing after a problem.

        Step by step: yields texts wherever it needs their tokens (see `tokenizing`).
        """
        proofs = [self._proof(row, problems) for row in rows]
        if problems:
            return [], []
        proven = [proof for proof in proofs if proof is not None]
        texts = [proof.text for proof in proven]
        encodings = yield from self._turn_tokenizer.encodings(texts, [proof.turns for proof in proven])
        all_ids, all_marks = [], []
        for row, proof, encoding in zip(rows, proven, encodings, strict=True):
            num_cut = self._turn_tokenizer.num_cut_turns
            try:
                ids, marks = self._turn_tokenizer.targets(proof.text, proof.turns, encoding)
            except Unproven as error:
                problems.add(error.kind, row.where, str(error), row.body)
                continue
            self._count(proof, len(row.messages) - 1 if self._last_only else 0, tally)
            tally["rows in parts"] += self._turn_tokenizer.num_cut_turns > num_cut
            all_ids.append(ids)
            all_marks.append(marks)
        return all_ids, all_marks

    def _proof(self, row: TrainingRow, problems: ProblemLog) -> Proof | None:
        messages = row.messages
        first = len(messages) - len(row.body) if self._completion_only else 0
        trained = [number for number, message in enumerate(messages) if number >= first and is_trained(message)]
        try:
            tools = tools_of(row)
            return self._provers.of(tools).prove(messages, tools, row.template_keywords, trained)
        except Unproven as error:
            problems.add(error.kind, row.where, str(error), messages)
        except Exception as error:
            note_refusal(problems, row, error)
        return None

    def _count(self, proof: Proof, first: int, tally: Counter[str]) -> None:
        for turn in proof.turns:
            tally[_PROVEN[turn.rule]] += 1
            if turn.is_rewritten:
                tally["rewritten answers"] += 1
            if turn.is_end_appended:
                tally["ends appended"] += 1
                tally["ends appended within"] += turn is not proof.turns[-1]
        for number, kind in proof.dropped:
            if number >= first:
                count_dropped(tally, kind)

    def notes(self, tally: Counter[str]) -> tuple[str, ...]:
        """What is worth saying about the rows that are in the tally."""
        num_turns = sum(tally[_PROVEN[rule]] for rule in Rule)
        if not num_turns:
            return ()
        notes = [
            f"The chat template has no {{% generation %}} marks: the targets of {num_turns:,} answers are proven by "
            f"rendering with provenance{_ways(tally)}."
        ]
        if tally["rewritten answers"]:
            notes.append(
                f"{tally['rewritten answers']:,} of {num_turns:,} answers are written otherwise once the "
                "conversation goes on (a template may drop earlier reasoning), and are trained as written. Set "
                "unroll=True to train each as it is generated, in a row of its own."
            )
        if count := tally["ends appended"]:
            within = (
                f"; in {tally['ends appended within']:,} cases the conversation goes on behind it, which no "
                "prompt of the template does: unroll=True trains each answer as it is generated"
            )
            notes.append(
                f"append_eot: {self._end_tokens[0]} is appended to {count:,} answers behind which the chat template "
                f"writes no end{within if tally['ends appended within'] else ''}."
            )
        if tally["rows in parts"]:
            notes.append(
                f"{tally['rows in parts']:,} rows are tokenized in parts, cut where an answer begins, because "
                "the whole text has other tokens there than the prompt that the model will get; their ids differ from "
                "trl's."
            )
        return tuple(notes)


def _ways(tally: Counter[str]) -> str:
    """How many turns were proven in a weaker way than the whole text's beginning."""
    counts = {rule: tally[_PROVEN[rule]] for rule in Rule}
    prefix = {Rule.EXACT, Rule.EXACT_START}
    ways = [f"{count:,} where {rule}" for rule, count in counts.items() if count and rule not in prefix]
    return f" ({'; '.join(ways)})" if ways else ""


def _end_tokens(tokenizer: Any, others: Sequence[str]) -> list[str]:
    """Texts of the tokens that may end a turn.

    Raises:
        ConfigurationError: there is none, or one is not a single token.
    """
    tokens = end_texts(tokenizer, others)
    if not tokens:
        raise ConfigurationError(
            "The tokenizer has no end-of-text token, so no answer could end. Set eos_token to the token that ends an "
            "answer in the chat template."
        )
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] != tokenizer.convert_tokens_to_ids(token):
            raise ConfigurationError(
                f"{token!r} should end an answer but is {len(ids)} tokens, not one of its own. Set eos_token to the "
                "token that ends an answer in the chat template."
            )
    return tokens
