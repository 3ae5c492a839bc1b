"""What stands in a message for a chat template to write: its content, its reasoning, its calls of tools.

What comes in: a message.  What goes out: each of its texts, with what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sartor.data.templates.provenance.shadow import REASONING, Kind


def fields_of(message: Mapping[str, Any]) -> Iterator[tuple[Kind | None, str, str]]:
    """(kind, name, text) of each text in a message; the kind of a called function's name is None.

    Worked example: `{"content": "Hi", "thinking": "So"}` gives (CONTENT, "content", "Hi") and (REASONING, "thinking",
    "So").
    """
    if isinstance(content := message.get("content"), str):
        yield Kind.CONTENT, "content", content
    for key in REASONING:
        if key in message and isinstance(message[key], str):
            yield Kind.REASONING, key, message[key]
    for call in message.get("tool_calls") or ():
        function = (call.get("function") or call) if isinstance(call, Mapping) else {}
        if isinstance(function.get("name"), str):
            yield None, "tool call", function["name"]
        for text in _texts_in(function.get("arguments")):
            yield Kind.ARGUMENTS, "tool arguments", text


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these texts, the longest first, as one may begin another; nothing where there are none."""
    longest_first = sorted(filter(None, set(texts)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def kinds_of(message: Mapping[str, Any]) -> set[Kind]:
    """Which kinds of text a message has, blank ones aside."""
    return {kind for kind, _, text in fields_of(message) if kind is not None and text.strip()}


def _texts_in(value: Any) -> Iterator[str]:
    """The texts in nested arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)
