"""What a template writes of the first messages alone, told without writing them all again.

In: a template, and one rendering of a conversation that was watched.  Out: for a number of messages what the template
writes of these, or nothing where that cannot be told.  What it keeps true: what is told is what transformers' rendering
of the first messages is, byte for byte.

A template always does the same until it asks for something else.  Most have one loop that writes the messages, whose
turns leave nothing behind.  So for the first k messages only the last of them is written anew: the template runs on
these k, its loop skips all turns but the last, and what the skipped ones write is taken from the whole.  That holds
where the loop begins with the same values and goes through the same messages, and where none of the skipped turns has
asked, in the whole, for a message behind the first k.

Worked example, a template that marks the last message, `a b c!`, and k = 2: the turn of the first message has asked
whether it is the last, so for message 2.  That is among the first two, so what it wrote holds: `a `.  The second turn
is done anew, now as the last: `b!`.  Together they are `a b!`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Undefined
from jinja2.utils import Namespace, missing

from sartor.compat import namespace_values

_NOT_REPEATABLE = frozenset(["random", "lipsum", "cycler", "joiner"])
"""What does not do the same each time: a filter, and functions."""


@dataclass(slots=True)
class Progress:
    """How a template goes through one conversation."""

    num_messages: int
    skips_below: int = 0
    """Turns of messages with smaller numbers are skipped."""
    num_written: int = 0
    """Characters, until now."""
    loop: int | None = None
    """The loop that writes the messages; None until it begins."""
    loop_start: int = 0
    """The character at which it has begun."""
    values: Any = None
    """What the template's names held then."""
    taken_at: dict[int, int] = field(default_factory=dict)
    """For each message of the loop, in order, the character at which its turn has begun."""
    reach: dict[int, int] = field(default_factory=dict)
    """For each of them the last message that was asked for in its turn, or between it and the next."""
    current: int | None = None
    is_unclear: bool = False

    def begin(self, loop: int, values: Callable[[], Sequence[Any]]) -> None:
        """The loop begins."""
        self.is_unclear |= self.loop is not None
        self.loop, self.loop_start = loop, self.num_written
        try:
            self.values = _plain(values())
        except NameError:  # a name that this way through the template does not set
            self.is_unclear = True

    def enter(self, number: int | None) -> bool:
        """A turn of the loop begins, with this message; whether it is to be skipped."""
        if number is None or (self.current is not None and number <= self.current):
            self.is_unclear = True
            return False
        self.current, self.taken_at[number], self.reach[number] = number, self.num_written, number
        return number < self.skips_below

    def asked(self, number: int) -> None:
        """The template has asked for a message."""
        if self.current is not None:
            self.reach[self.current] = max(self.reach[self.current], number)


class WatchedMessages(Sequence[Any]):
    """A conversation's messages from one on, which note what a template asks of them.

    This is no list: what a template does with it that cannot be watched raises, and it is then given a list.
    """

    def __init__(self, messages: Sequence[Any], progress: Progress, first: int = 0) -> None:
        self._messages = messages
        self._progress = progress
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        for number in range(self._first, len(self._messages)):
            self._progress.asked(number)
            yield self._messages[number]
        self._progress.asked(len(self._messages))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and (index.stop, index.step) == (None, None) and (index.start or 0) >= 0:
            return WatchedMessages(self._messages, self._progress, self._first + (index.start or 0))
        is_there = isinstance(index, int) and 0 <= index < len(self._messages) - self._first
        self._progress.asked(self._first + index if is_there else len(self._messages))
        return self._messages[self._first :][index]

    def __len__(self) -> int:
        self._progress.asked(len(self._messages))
        return max(0, len(self._messages) - self._first)

    def __bool__(self) -> bool:
        self._progress.asked(self._first)
        return len(self._messages) > self._first

    def __eq__(self, other: object) -> bool:
        self._progress.asked(len(self._messages))
        return list(self._messages[self._first :]) == other

    __hash__ = None  # type: ignore[assignment]

    def place(self) -> tuple[str, int]:
        """What it is, whatever the conversation's length."""
        return "messages from", self._first


def spliced(whole: str, progress: Progress, part: str, of_part: Progress) -> str | None:
    """What a template writes of the first messages; None where that cannot be told.

    Args:
        whole: what it has written of all messages.
        progress: how it went through them.
        part: what it has written of the first ones, with all turns but the last skipped.
        of_part: how it went through these.
    """
    count = of_part.num_messages
    if progress.is_unclear or of_part.is_unclear or progress.loop is None or of_part.loop != progress.loop:
        return None
    begun = [number for number in progress.taken_at if number < count]
    if of_part.values != progress.values or list(of_part.taken_at) != begun:
        return None
    skipped = [number for number in begun if number < of_part.skips_below]
    if any(progress.reach[number] >= count for number in skipped):
        return None
    behind = next((start for number, start in progress.taken_at.items() if number >= of_part.skips_below), None)
    if skipped and behind is None:
        return None
    written = whole[progress.loop_start : behind] if skipped else ""
    return part[: of_part.loop_start] + written + part[of_part.loop_start :]


def writing_loops(template: nodes.Template) -> dict[int, int]:
    """The loop that writes the messages, one for each way through the template, by the identity of its body; numbered.

    There is none where a turn may leave something behind for later ones, where something up to it asks whether a prompt
    is wanted, or where parts of the template lie elsewhere.
    """
    loops = list(_last_loops(template.body))
    names = {name.name for name in template.find_all(nodes.Name)} | {f.name for f in template.find_all(nodes.Filter)}
    is_elsewhere = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
    last = max((place for place, node in enumerate(template.body) if _has_loop(node)), default=-1)
    before = {name.name for node in template.body[: last + 1] for name in _names(node)}
    if (
        "add_generation_prompt" in before
        or not names.isdisjoint(_NOT_REPEATABLE)
        or any(True for _ in template.find_all(is_elsewhere))
        or any(loop.recursive or loop.else_ or _leaves_something(loop) for loop in loops)
    ):
        return {}
    return {id(loop.body): number for number, loop in enumerate(loops)}


def _last_loops(body: Sequence[nodes.Node]) -> Iterator[nodes.For]:
    """Of each way through these statements the last loop."""
    for node in reversed(body):
        if isinstance(node, nodes.For):
            yield node
            return
        if isinstance(node, nodes.If) and _has_loop(node):
            for branch in (node.body, *(other.body for other in node.elif_), node.else_):
                yield from _last_loops(branch)
            return
        if _has_loop(node):  # within a macro or a block, whose text is written elsewhere
            return


def _leaves_something(loop: nodes.For) -> bool:
    """Whether a turn sets what outlives it."""
    changed = (node for node in loop.find_all(nodes.Getattr) if node.attr == "changed")
    return any(True for _ in loop.find_all(nodes.NSRef)) or any(True for _ in changed)


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


def _has_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.For) or node.find(nodes.For) is not None


def _plain(value: Any) -> Any:
    """A value that equals that of another rendering where both mean the same; else one that equals none."""
    if isinstance(value, WatchedMessages):
        return value.place()
    if isinstance(value, Namespace):
        return _plain(namespace_values(value))
    if value is missing or isinstance(value, Undefined):
        return "undefined"
    if isinstance(value, str):
        return ("text", str.__str__(value))
    if value is None or isinstance(value, bool | int | float):
        return (type(value), value)
    if isinstance(value, Mapping):
        return [(key, _plain(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return object()
