"""Strings that know where each of their characters comes from.

A `Shadow` is a `str` with a second string of the same length beside it, one *tag* per character.  Its methods do to the
tags what they do to the text, at the speed of Python's own string methods.  What cannot be followed character by
character is tagged as a whole: with its only source, or with `MIX`.  So a tag may say less than is known, never more.

Worked example: `Shadow("  Hi ", "aaaaa").strip() + "<end>"` is the text `Hi<end>` with the tags `aa.....`, where `.`
stands for `OUTSIDE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from functools import wraps
from typing import Any, SupportsIndex

OUTSIDE = "\x00"
"""Tag of text that belongs to no message, and of plain strings."""
MIX = "\x01"
"""Tag of text made of several messages that cannot be told apart any more."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that reasoning may stand under."""


class Kind(IntEnum):
    """What of a message a character is."""

    LITERAL = 0
    """Text of the template's own, written while it was at this message."""
    CONTENT = 1
    REASONING = 2
    ARGUMENTS = 3
    """Arguments of a tool call."""


_FIRST_TAG = 4
_KINDS = tuple(Kind)  # looking a kind up in its class is several times slower, and is done for each run of tags
_NUM_KINDS = len(_KINDS)


def tag_of(message: int, kind: Kind) -> str:
    """The tag of one message's characters of one kind."""
    return chr(_FIRST_TAG + _NUM_KINDS * message + kind)


def message_of(tag: str) -> int | None:
    """The message that a tag names; None for `OUTSIDE` and `MIX`."""
    return None if tag < "\x04" else (ord(tag) - _FIRST_TAG) // _NUM_KINDS


def kind_of(tag: str) -> Kind:
    """What of its message a tag names; only for tags that name a message."""
    return _KINDS[(ord(tag) - _FIRST_TAG) % _NUM_KINDS]


def _as_a_whole(method: Callable[..., str]) -> Callable[..., Shadow]:
    """A method of `str` whose result is not followed: its tags stay where it changes each character in its place."""

    @wraps(method)
    def traced(self: Shadow, *arguments: Any, **keywords: Any) -> Shadow:
        text = method(self, *arguments, **keywords)
        if len(text) == len(self) and not arguments and not keywords:
            return Shadow(text, self._tags)
        return Shadow(text, sole_tag([self, arguments, keywords]) * len(text))

    return traced


class Shadow(str):
    """Text with one tag per character.  It equals, and hashes as, the plain text."""

    __slots__ = ("_tags",)
    # An underscore keeps a template's sandbox, and its `message.content.tags`, away from it.
    _tags: str

    def __new__(cls, text: str = "", tags: str | None = None) -> Shadow:
        """A text, outside any message where no tags are given."""
        self = super().__new__(cls, text)
        self._tags = OUTSIDE * len(text) if tags is None else tags
        return self

    def __str__(self) -> str:
        return self  # filters call str() on what they get

    def __add__(self, other: str) -> Shadow:
        return Shadow(str.__add__(self, other), self._tags + tags_of(other))

    def __radd__(self, other: str) -> Shadow:
        return Shadow(str.__add__(other, self), tags_of(other) + self._tags)

    def __mul__(self, count: SupportsIndex) -> Shadow:
        return Shadow(str.__mul__(self, count), self._tags * count)

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> Shadow:
        return Shadow(str.__getitem__(self, key), self._tags[key])

    def __iter__(self) -> Iterator[Shadow]:
        return map(Shadow, str.__iter__(self), self._tags)

    def lstrip(self, characters: str | None = None, /) -> Shadow:
        """As `str.lstrip`."""
        text = str.lstrip(self, characters)
        return Shadow(text, self._tags[len(self) - len(text) :])

    def rstrip(self, characters: str | None = None, /) -> Shadow:
        """As `str.rstrip`."""
        text = str.rstrip(self, characters)
        return Shadow(text, self._tags[: len(text)])

    def strip(self, characters: str | None = None, /) -> Shadow:
        """As `str.strip`."""
        start = len(self) - len(str.lstrip(self, characters))
        text = str.strip(self, characters)
        return Shadow(text, self._tags[start : start + len(text)])

    def removeprefix(self, prefix: str, /) -> Shadow:
        """As `str.removeprefix`."""
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Shadow:
        """As `str.removesuffix`."""
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`."""
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`."""
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def _located(self, parts: list[str], separator: str | None) -> list[str]:
        """Parts with their tags.

        With a separator they lie that far apart, without one each is found behind the last.
        """
        result: list[str] = []
        position = 0
        for part in parts:
            if separator is None:
                position = self.index(part, position)
            result.append(Shadow(part, self._tags[position : position + len(part)]))
            position += len(part) + (0 if separator is None else len(separator))
        return result

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`."""
        result: list[str] = []
        position = 0
        for whole, shown in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            result.append(Shadow(shown, self._tags[position : position + len(shown)]))
            position += len(whole)
        return result

    def partition(self, sep: str, /) -> tuple[Shadow, Shadow, Shadow]:
        """As `str.partition`."""
        before, _, _ = str.partition(self, sep)
        start, end = len(before), min(len(self), len(before) + len(sep))
        return self[:start], self[start:end], self[end:]

    def rpartition(self, sep: str, /) -> tuple[Shadow, Shadow, Shadow]:
        """As `str.rpartition`."""
        _, _, after = str.rpartition(self, sep)
        end = len(self) - len(after)
        start = max(0, end - len(sep))
        return self[:start], self[start:end], self[end:]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Shadow:
        """As `str.replace`; a plain replacement takes the tag of the first character that it replaces."""
        text = str.replace(self, old, new, count)
        if not old:
            return Shadow(text, sole_tag([self, new]) * len(text))
        parts = str.split(self, old, -1 if int(count) < 0 else count)
        tags, position = [], 0
        for part in parts[:-1]:
            end = position + len(part)
            tags += [self._tags[position:end], new._tags if isinstance(new, Shadow) else self._tags[end] * len(new)]
            position = end + len(old)
        return Shadow(text, "".join(tags) + self._tags[position:])

    def join(self, parts: Iterable[str], /) -> Shadow:
        """As `str.join`."""
        listed = list(parts)
        return Shadow(str.join(self, listed), self._tags.join(map(tags_of, listed)))

    # One character for each character in nearly all cases ("ß" becomes "SS").
    lower = _as_a_whole(str.lower)
    upper = _as_a_whole(str.upper)
    title = _as_a_whole(str.title)
    capitalize = _as_a_whole(str.capitalize)
    casefold = _as_a_whole(str.casefold)
    swapcase = _as_a_whole(str.swapcase)

    translate = _as_a_whole(str.translate)
    expandtabs = _as_a_whole(str.expandtabs)
    zfill = _as_a_whole(str.zfill)
    center = _as_a_whole(str.center)
    ljust = _as_a_whole(str.ljust)
    rjust = _as_a_whole(str.rjust)


def tags_of(text: str) -> str:
    """The tags of a text; a plain one is outside any message."""
    return text._tags if isinstance(text, Shadow) else OUTSIDE * len(text)


def joined(parts: Iterable[str]) -> str:
    """Texts end to end, with their tags."""
    listed = list(parts)
    text = "".join(listed)
    if not any(isinstance(part, Shadow) for part in listed):
        return text
    return Shadow(text, "".join(map(tags_of, listed)))


def sources_of(value: Any) -> set[str]:
    """The tags of all text in a value, which may hold lists and dictionaries; without `OUTSIDE`."""
    if isinstance(value, Shadow):
        return set(value._tags) - {OUTSIDE}
    if isinstance(value, str):
        return set()
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return set()
    return {tag for item in value for tag in sources_of(item)}


def sole_tag(value: Any) -> str:
    """The one tag that is true of everything made of a value: of one message, or `MIX`, or `OUTSIDE`."""
    sources = sources_of(value)
    if not sources:
        return OUTSIDE
    if len(sources) == 1:
        return sources.pop()
    messages = {message_of(tag) for tag in sources}
    message = messages.pop()
    if messages or message is None:
        return MIX
    kinds = {kind_of(tag) for tag in sources} - {Kind.LITERAL}
    return tag_of(message, kinds.pop() if len(kinds) == 1 else Kind.CONTENT)


def tagged(text: str, value: Any) -> str:
    """A text that was made of a value in a way that is not followed."""
    tag = sole_tag(value)
    return text if tag == OUTSIDE else Shadow(text, tag * len(text))
