"""Texts that are not known yet: what a template does with them is written down, or refused.

A `Blank` stands for a message's text while a template runs.  It can be stripped, joined with other text and asked a few
questions (is it empty, does it hold `</think>`); each answer is written down as a `Guard`.  It is no `str`: whatever
else is done with it raises, so that nothing is done unseen.  So what is written in the end is true of all conversations
that give the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Piece = str | int | bool
"""Text of the template's own, the number of a slot, or where marked text begins (True) or ends (False)."""
Source = tuple[int, str]
"""A message's number, and the name of one of its fields."""

_QUESTIONS: dict[str, Callable[[str, Any], bool]] = {
    "bool": lambda text, _: bool(text),
    "contains": lambda text, part: part in text,
    "equals": lambda text, other: text == other,
    "startswith": lambda text, start: text.startswith(start),
    "endswith": lambda text, end: text.endswith(end),
}
_STRIPS = ("strip", "lstrip", "rstrip")


class Unsettled(Exception):
    """The template does something with a text that is not followed."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a message's text is put: of which field it is, and how it is stripped before."""

    source: Source
    strips: tuple[tuple[str, str | None], ...] = ()

    def filled(self, text: str) -> str:
        """What is put there."""
        for name, characters in self.strips:
            text = getattr(str, name)(text, characters)
        return text


@dataclass(frozen=True, slots=True)
class Guard:
    """A question about texts and its answer."""

    pieces: tuple[Piece, ...]
    question: str
    argument: Any
    answer: bool

    def holds(self, values: Sequence[str]) -> bool:
        """Whether other texts give the same answer; `values`: of all slots."""
        return _QUESTIONS[self.question](text_of(self.pieces, values), self.argument) is self.answer


@dataclass(slots=True)
class Book:
    """What is written down while a template runs: slots, and the answers that its way depends on."""

    texts: Mapping[Source, str]
    """The texts that blanks stand for."""
    slots: dict[Slot, int] = field(default_factory=dict)
    values: list[str] = field(default_factory=list)
    guards: dict[Guard, None] = field(default_factory=dict)

    def blank(self, slot: Slot) -> Blank:
        """What stands for a slot's text."""
        number = self.slots.setdefault(slot, len(self.slots))
        if number == len(self.values):
            self.values.append(slot.filled(self.texts[slot.source]))
        return Blank(self, (number,))

    def slot(self, number: int) -> Slot:
        """The slot of a number."""
        return list(self.slots)[number]


def text_of(pieces: Sequence[Piece], values: Sequence[str]) -> str:
    """The text that pieces make, given those of the slots."""
    return "".join(
        [piece if isinstance(piece, str) else "" if isinstance(piece, bool) else values[piece] for piece in pieces]
    )


class Blank:
    """A text that is not known yet, or one that holds such texts."""

    __slots__ = ("_book", "_pieces")

    def __init__(self, book: Book, pieces: tuple[Piece, ...]) -> None:
        self._book = book
        self._pieces = pieces

    def _asked(self, question: str, argument: Any = None) -> bool:
        is_plain = argument is None or isinstance(argument, str)
        if not is_plain and not (isinstance(argument, tuple) and all(isinstance(item, str) for item in argument)):
            raise Unsettled
        answer = _QUESTIONS[question](text_of(self._pieces, self._book.values), argument)
        pieces = tuple(piece for piece in self._pieces if not isinstance(piece, bool))
        self._book.guards[Guard(pieces, question, argument, answer)] = None
        return answer

    def method(self, name: str) -> Callable[..., Any]:
        """The method of `str` that a template asks for."""
        if name in _STRIPS:
            return lambda characters=None, /: self._stripped(name, characters)
        if name in ("startswith", "endswith"):
            return lambda part, /: self._asked(name, part)
        raise Unsettled

    def _stripped(self, name: str, characters: Any) -> Blank:
        pieces = [piece for piece in self._pieces if piece != "" or isinstance(piece, int)]
        is_slot = len(pieces) == 1 and isinstance(pieces[0], int) and not isinstance(pieces[0], bool)
        if not is_slot or not (characters is None or isinstance(characters, str)):
            raise Unsettled
        slot = self._book.slot(int(pieces[0]))
        return self._book.blank(Slot(slot.source, (*slot.strips, (name, characters))))

    def trimmed(self, characters: Any = None) -> Blank:
        """As the filter `trim`."""
        return self._stripped("strip", characters)

    def __add__(self, other: Any) -> Blank:
        return Blank(self._book, self._pieces + pieces_of(other))

    def __radd__(self, other: Any) -> Blank:
        return Blank(self._book, pieces_of(other) + self._pieces)

    def __contains__(self, part: Any) -> bool:
        if not isinstance(part, str):
            raise Unsettled
        return self._asked("contains", part)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Blank):
            raise Unsettled
        return isinstance(other, str) and self._asked("equals", other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self._asked("bool")

    def __str__(self) -> str:
        raise Unsettled

    __repr__ = __str__

    def __format__(self, specification: str) -> str:
        raise Unsettled


def pieces_of(value: Any) -> tuple[Piece, ...]:
    """The pieces of a text."""
    if isinstance(value, Blank):
        return value._pieces
    if type(value) is str:
        return (value,)
    raise Unsettled


def joined(parts: Sequence[Any]) -> Any:
    """Texts end to end; plain where none of them is blank."""
    blanks = [part for part in parts if isinstance(part, Blank)]
    if not blanks:
        return "".join(parts)
    return Blank(blanks[0]._book, tuple(piece for part in parts for piece in pieces_of(part)))


def holds_blank(value: Any) -> bool:
    """Whether a value is blank, or holds such text somewhere."""
    if isinstance(value, Blank):
        return True
    if isinstance(value, Mapping):
        return any(map(holds_blank, value.values()))
    if isinstance(value, (str, int, float, bytes)) or value is None:
        return False
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(holds_blank, value))
    return True  # a generator, say: nobody knows
