"""Conversations in the shapes of other tools: ShareGPT's messages, and Alpaca's columns.

What comes in: what a row holds.  What goes out: messages with `role` and `content`, whose values are checked later.
What it keeps true: nothing of a row is left out or guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sartor.data.reading.problems import BadRow

Message = dict[str, Any]

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
"""What ShareGPT's `from` values mean in a chat template's words; others are roles themselves, or unknown."""
ALPACA_COLUMNS = ("instruction", "input", "output", "system", "history")


def message_of_sharegpt(message: Any, number: int) -> Any:
    """A message with `role` and `content`, where it has ShareGPT's `from` and `value`; any other as it is.

    Worked example: `{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}` is a message of the assistant
    that calls the tool f.

    Args:
        number: of the message, from 1.

    Raises:
        BadRow: a function call that is none.
    """
    if not isinstance(message, dict) or "from" not in message or message.get("role") is not None:
        return message
    role, value = message["from"], message.get("value")
    rest = {key: content for key, content in message.items() if key not in ("from", "value", "role", "content")}
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(value, number), **rest}
    known = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    return {"role": known, "content": value, **rest}


def _tool_calls(value: Any, number: int) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow("bad function call", f"the value of message {number} is not JSON: {error}.") from error
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise BadRow("bad function call", f"the value of message {number} is no object with name and arguments.")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}}}
        for call in calls
    ]


def with_system(messages: Sequence[Any], system: Any) -> list[Any]:
    """The messages behind the system message that stands in a column of its own, where there is one.

    Raises:
        BadRow: it is no text, or contradicts the first message.
    """
    if system is None or system == "":
        return list(messages)
    if not isinstance(system, str):
        raise BadRow("wrong type", f"the column 'system' holds a {type(system).__name__}, not text.")
    first = messages[0]
    if isinstance(first, dict) and first.get("role") == "system":
        if first.get("content") == system:
            return list(messages)
        raise BadRow("two system messages", "the column 'system' and message 1 are both system messages: leave one.")
    return [{"role": "system", "content": system}, *messages]


def alpaca_messages(row: Mapping[str, Any]) -> list[Message]:
    """The messages of Alpaca's columns, the last of which is the answer.

    `instruction` and `input`, with an empty line in between, are the question, `output` is the answer; `system`, and
    earlier turns as pairs in `history`, come before them.

    Raises:
        BadRow: a column has no value, or one of a wrong type.
    """
    texts: dict[str, str] = {}
    for column in ("instruction", "input", "output"):
        value = row.get(column)
        if value is None and column != "input":
            raise BadRow("missing value", f"the column {column!r} has no value here.")
        if value is not None and not isinstance(value, str):
            raise BadRow("wrong type", f"the column {column!r} holds a {type(value).__name__}, not text.")
        texts[column] = value or ""
    question = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text.strip())
    messages: list[Message] = []
    for pair in _history(row.get("history")):
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": texts["output"]}]
    return with_system(messages, row.get("system"))


def _history(history: Any) -> Sequence[Any]:
    pairs = [] if history is None else history
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("wrong type", "the column 'history' is no list of [question, answer].")
    return pairs
