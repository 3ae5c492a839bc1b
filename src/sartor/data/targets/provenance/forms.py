"""Forms: what was found out about one conversation, and holds for others of its shape.

What comes in: messages.  What goes out: the texts that fill a form, or None where it does not fit.  What it keeps true:
a form that fits gives what doing everything anew for the conversation would give.

Most rows of a data set have one of few shapes: who speaks, and which fields there are.  For the first ones of a shape
everything is done; then an `Outline` is made of what the template writes, and the rows that follow only fill its slots.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sartor.data.targets.provenance.blanks import Book, Guard, Slot
from sartor.data.targets.provenance.outline import Outline
from sartor.data.targets.provenance.render import IDENTIFIERS, REASONING

Shape = tuple[Hashable, ...]
Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")

SEEN_BEFORE = 4
"""Rows of a shape for which everything is done before it is given a form: most shapes of few rows never need one."""
FORMS_PER_SHAPE = 4
"""Attempts for each shape, of which a template may go several ways by what the texts hold."""
MAX_SHAPES = 1024


def shape_of(messages: Messages, tools: Any, keywords: Mapping[str, Any]) -> Shape | None:
    """What conversations must share so that one may stand for the other; None where that cannot be told quickly.

    Everything but the texts themselves, of which it only matters whether there is anything in them.
    """
    if tools is not None:
        return None
    shape: list[Any] = []
    for name, value in keywords.items():
        if type(value) not in (str, bool, int, float):
            return None
        shape += (name, type(value), value)
    for message in messages:
        num_reasoning = 0
        shape.append(None)  # a message begins
        for name, value in message.items():
            kind = type(value)
            if kind is str:
                if name in IDENTIFIERS:
                    shape += (name, value)
                else:
                    shape += (name, not value or value.isspace())
                    num_reasoning += name in REASONING
            elif kind is bool or kind is int or kind is float:
                shape += (name, kind, value)
            elif value is not None:
                return None
        if num_reasoning > 1:
            return None  # transformers chooses one of them
    return tuple(shape)


class Filling:
    """Takes the texts for an outline's slots from conversations of the same shape."""

    def __init__(self, book: Book, outlines: Sequence[Outline]) -> None:
        """`outlines`: all that are to be filled."""
        asked = {piece for guard in book.guards for piece in guard.pieces if isinstance(piece, int)}
        self._shown = sorted({slot for outline in outlines for slot in outline.slots})
        slots = list(book.slots)
        self._slots: list[tuple[int, Slot]] = [(n, slots[n]) for n in sorted(asked.union(self._shown))]
        self._guards: list[Guard] = list(book.guards)
        self._num_slots = len(slots)

    def values(self, messages: Messages) -> list[str] | None:
        """The texts of all slots that are used; None where the template may go another way, or a slot is empty."""
        values = [""] * self._num_slots
        for number, slot in self._slots:
            place, name = slot.source
            text = messages[place][name]
            values[number] = slot.filled(text) if slot.strips else text
        for number in self._shown:
            if not values[number]:
                return None
        for guard in self._guards:
            if not guard.holds(values):
                return None
        return values


@dataclass(slots=True)
class _Known(Generic[T]):
    """What is known of a shape."""

    forms: list[T]
    num_seen: int = 0
    num_failed: int = 0


class Forms(Generic[T]):
    """Forms by shape."""

    def __init__(self) -> None:
        self._known: dict[Shape, _Known[T]] = {}

    def of(self, shape: Shape) -> Sequence[T]:
        """Forms that may fit a conversation of this shape."""
        known = self._known.get(shape)
        return () if known is None else known.forms

    def learn(self, shape: Shape, make: Callable[[], T | None]) -> None:
        """Note that no form fitted a conversation, and perhaps make one of it; `make` may raise: then there is none."""
        known = self._known.get(shape)
        if known is None:
            if len(self._known) >= MAX_SHAPES:
                self._known.clear()
            known = self._known[shape] = _Known([])
        known.num_seen += 1
        if known.num_seen < SEEN_BEFORE or len(known.forms) + known.num_failed >= FORMS_PER_SHAPE:
            return
        known.num_seen = 0
        try:
            form = make()
        except Exception:  # a template may raise what it likes, of a blank more than of a text
            form = None
        if form is None:
            known.num_failed += 1
        else:
            known.forms.append(form)
