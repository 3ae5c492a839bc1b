"""A proof that holds for every conversation of one shape.

What comes in: the proof of one conversation, and outlines of what the template writes for its shape.  What goes out:
the proof of another one, or None where it has to be proven for itself.  What it keeps true: a proof that a form gives
is the one that `Prover` finds for the conversation alone.

Only proofs of the strictest rule have a form: the prompt of each turn, and the conversation up to it, are how the text
begins, and are so whatever is in the slots.  What a text may still change is looked at each time: whether a message
holds a special token, or the header of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sartor.data.targets.attempt import Proof, Rule, Turn
from sartor.data.targets.provenance.blanks import Book
from sartor.data.targets.provenance.forms import Filling, Messages
from sartor.data.targets.provenance.outline import Outline


@dataclass(frozen=True, slots=True)
class _TurnForm:
    """A turn, whose bounds are places in literals: number of the literal, and of the character in it."""

    message: int
    start: tuple[int, int]
    end: tuple[int, int]
    end_token: str


class ProofForm:
    """Proofs of one shape of conversations."""

    def __init__(
        self,
        filling: Filling,
        outline: Outline,
        turns: Sequence[_TurnForm],
        special: Sequence[tuple[int, int, int]],
        proof: Proof,
        atoms: re.Pattern[str],
        header: str,
    ) -> None:
        """`special`: where the template writes special tokens: literal, first and last + 1 character in it."""
        self._filling = filling
        self._outline = outline
        self._turns = turns
        self._special = special
        self._dropped = proof.dropped
        self._atoms = atoms
        self._header = header

    def proof(self, messages: Messages) -> Proof | None:
        """The proof for another conversation of the shape."""
        values = self._filling.values(messages)
        if values is None:
            return None
        text = self._outline.filled(values)
        places = self._outline.places(values)
        expected = [(places[literal] + first, places[literal] + end) for literal, first, end in self._special]
        if [match.span() for match in self._atoms.finditer(text)] != expected:
            return None
        turns = []
        for form in self._turns:
            start, end = places[form.start[0]] + form.start[1], places[form.end[0]] + form.end[1]
            if self._header and text.find(self._header, start, end) >= 0:
                return None
            turns.append(Turn(form.message, start, end, form.end_token, Rule.EXACT, is_rewritten=False))
        return Proof(text, tuple(turns), self._dropped, text)


def form_of(
    proof: Proof,
    book: Book,
    outline_of: Callable[[int, bool], Outline],
    messages: Messages,
    atoms: re.Pattern[str],
    prompt_end: str | None,
) -> ProofForm | None:
    """The form of a proof; None where it does not hold for the whole shape.

    Args:
        outline_of: what the template writes for so many messages, perhaps with the generation prompt.
        atoms: finds special tokens.
        prompt_end: what asks for an answer.
    """
    if not prompt_end or proof.unended != proof.text:
        return None
    outline = outline_of(len(messages), False)
    turns = []
    asked = [outline]
    for turn in proof.turns:
        if turn.rule is not Rule.EXACT or turn.is_end_appended:
            return None
        prompt = outline_of(turn.message, True)
        until = outline if turn.message + 1 == len(messages) else outline_of(turn.message + 1, False)
        asked += (prompt, until)
        form = _turn_form(turn, outline, prompt, until, book)
        if form is None or not prompt.literals[-1].endswith(prompt_end):
            return None
        turns.append(form)
    special = _special_places(outline, book.values, atoms, proof.text)
    if special is None or outline.filled(book.values) != proof.text:
        return None
    return ProofForm(Filling(book, asked), outline, turns, special, proof, atoms, prompt_end.strip())


def _turn_form(turn: Turn, outline: Outline, prompt: Outline, until: Outline, book: Book) -> _TurnForm | None:
    """Where a turn begins and ends in every conversation of the shape.

    It ends in the literal behind the message's last slot, and no other slot lies between this and the turn's limit: so
    what is found there is the same whatever is in the slots.
    """
    if not (outline.begins_with(prompt) and outline.begins_with(until)):
        return None
    places = outline.places(book.values)
    first, last = len(prompt.slots), len(until.slots)
    start = (first, len(prompt.literals[-1]))
    sources = [list(book.slots)[slot].source[0] for slot in outline.slots[first:last]]
    end = (last, turn.end - places[last])
    if (
        not sources
        or set(sources) != {turn.message}
        or any(
            list(book.slots)[slot].source[0] == turn.message for slot in (*outline.slots[:first], *outline.slots[last:])
        )
    ):
        return None
    if places[start[0]] + start[1] != turn.start or not len(turn.end_token) <= end[1] <= len(until.literals[-1]):
        return None
    return _TurnForm(turn.message, start, end, turn.end_token)


def _special_places(
    outline: Outline, values: Sequence[str], atoms: re.Pattern[str], text: str
) -> list[tuple[int, int, int]] | None:
    """Where special tokens are; None where one is not in a literal."""
    places = outline.places(values)
    result, literal = [], 0
    for match in atoms.finditer(text):
        while literal + 1 < len(places) and places[literal + 1] <= match.start():
            literal += 1
        first, end = match.start() - places[literal], match.end() - places[literal]
        if end > len(outline.literals[literal]):
            return None
        result.append((literal, first, end))
    return result
