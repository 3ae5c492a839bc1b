"""Whether a template writes a conversation front to back, so that what it writes of the first messages alone is known.

What comes in: a template, and the messages that it is given.  What goes out: for each message the character at which
the template took it, or nothing where it may have looked ahead.  What it keeps true: the text up to that character is
what the template writes of the messages before it, whatever comes after them.

A template always does the same until it asks for something else.  So where it takes the messages in one loop, and has
asked for nothing that lies behind the message it is at, it would have written the same so far without those behind.
Where what follows the loop reads neither messages nor what the loop has set, it ends every prompt in the same way.

Worked example, ChatML, a user's `Hi` answered with `Yo`: the messages are taken at the characters 0 and 33.  So the
prompt for message 1 is the text up to character 33, and `<|im_start|>assistant⏎`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes

_NOT_CONSTANT = frozenset(["messages", "tools", "documents", "loop", "self", "strftime_now"])
"""Names whose values differ between conversations, or within one."""


@dataclass(slots=True)
class Progress:
    """How a template goes through one conversation."""

    num_messages: int
    num_written: int = 0
    """Characters, until now."""
    current: int | None = None
    """The message that the loop is at."""
    first: int = 0
    """The message at which the loop has begun."""
    num_asked: int = 0
    """Of these messages, the first ones, some were asked for by number."""
    looked_ahead: bool = False
    end: int | None = None
    """The character at which the loop has ended."""
    taken_at: list[int] = field(default_factory=list)

    def starts(self) -> list[int] | None:
        """The character at which each message was taken; None where the template may have looked ahead.

        Of a message that is no part of the loop, or stands before one that was asked for by number, it is -1.
        """
        is_whole = self.first + len(self.taken_at) == self.num_messages
        if self.looked_ahead or not is_whole or self.end != self.num_written:
            return None
        num_unknown = max(self.first, self.num_asked)
        return [-1] * num_unknown + self.taken_at[num_unknown - self.first :]

    def leave(self, message: int) -> None:
        """The loop has come to the end of its body."""
        if message == self.current:
            self.current = None


class WatchedMessages(Sequence[Any]):
    """A conversation's messages from one on, which note how a template goes through them.

    This is no list: what a template does with it that cannot be watched raises, and it is then given a list.
    """

    def __init__(self, messages: Sequence[Any], progress: Progress, first: int = 0) -> None:
        self._messages = messages
        self._progress = progress
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        progress = self._progress
        if progress.taken_at or progress.end is not None:
            progress.looked_ahead = True  # a loop before this one has seen all messages
        progress.first = self._first
        for number in range(self._first, len(self._messages)):
            if progress.current is not None:
                progress.looked_ahead = True  # the loop is still at the message before
            progress.taken_at.append(progress.num_written)
            progress.current = number
            yield self._messages[number]
        if progress.current is not None:
            progress.looked_ahead = True
        progress.end = progress.num_written

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and (index.stop, index.step) == (None, None) and (index.start or 0) >= 0:
            first = self._first + (index.start or 0)
            self._progress.num_asked = max(self._progress.num_asked, min(first, len(self._messages)))
            return WatchedMessages(self._messages, self._progress, first)
        if isinstance(index, int) and 0 <= index < len(self._messages) - self._first:
            self._progress.num_asked = max(self._progress.num_asked, self._first + index + 1)
        else:
            self._progress.looked_ahead = True
        return self._messages[self._first :][index]

    def __len__(self) -> int:
        self._progress.looked_ahead = True
        return max(0, len(self._messages) - self._first)

    def __bool__(self) -> bool:
        self._progress.num_asked = max(self._progress.num_asked, min(self._first + 1, len(self._messages)))
        return len(self._messages) > self._first

    def __eq__(self, other: object) -> bool:
        self._progress.looked_ahead = True
        return list(self._messages[self._first :]) == other

    __hash__ = None  # type: ignore[assignment]


def last_loops(template: nodes.Template) -> set[int]:
    """The loops (identities of their bodies) behind which the template writes what depends on no message.

    There are none where what follows reads a name that the template sets, or that differs between conversations; or
    where something before the end of the loop asks whether a prompt is wanted.
    """
    body = template.body
    last = max((place for place, node in enumerate(body) if _has_loop(node)), default=-1)
    is_elsewhere = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
    if last < 0 or any(True for _ in template.find_all(is_elsewhere)):
        return set()
    names_set = {name.name for name in template.find_all(nodes.Name) if name.ctx != "load"}
    names_set |= {macro.name for macro in template.find_all(nodes.Macro)}
    read_after = {name.name for node in body[last + 1 :] for name in _names(node)}
    read_before = {name.name for node in body[: last + 1] for name in _names(node)}
    if read_after & (names_set | _NOT_CONSTANT) or "add_generation_prompt" in read_before:
        return set()
    return set(_ends_of(body[last]))


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


def _has_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.For) or node.find(nodes.For) is not None


def _ends_of(node: nodes.Node) -> Iterator[int]:
    """The loops with which a node ends, whichever way is taken through it."""
    if isinstance(node, nodes.For) and not node.recursive:
        yield id(node.body)
    elif isinstance(node, nodes.If):
        for branch in (node.body, *(other.body for other in node.elif_), node.else_):
            if branch:
                yield from _ends_of(branch[-1])
