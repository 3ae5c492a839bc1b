"""What is conspicuous in the text of a row, before any template or tokenizer has seen it.

What comes in: checked rows as they are encoded, one by one.  What goes out: findings in the ledger, and what
duplicates are compared by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.record import Severity
from sartor.data.rows.formats import TrainingRow
from sartor.data.templates.fields import any_of

MARKERS: Mapping[str, tuple[str, ...]] = {
    "ChatML": ("<|im_start|>", "<|im_end|>"),
    "Llama 2 or Mistral": ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    "Llama 3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "Gemma": ("<start_of_turn>", "<end_of_turn>"),
    "Zephyr or Phi": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    "DeepSeek": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "Command R": ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "gpt-oss": ("<|start|>", "<|channel|>", "<|message|>", "<|return|>"),
    "Alpaca": ("### Instruction", "### Response", "### Input:"),
    "Vicuna": ("\nUSER:", "\nASSISTANT:", "\nHuman:", "\nAssistant:", "\n### Human:", "\n### Assistant:"),
    "a plain end of text": ("<|endoftext|>", "</s>", "<eos>"),
}
"""Family of templates to strings that hardly occur in text for any other reason."""

_FAMILY = {marker: family for family, markers in MARKERS.items() for marker in markers}
_MARKER = any_of(_FAMILY)
_PLACEHOLDERS = frozenset(["n/a", "na", "none", "null", "nil", "nan", "todo", "tbd", "undefined", "empty", "no answer"])
_SHORT_CHARACTERS = 10
"""An answer of more than this is never near-empty, whatever the others are like."""
_SHORT_SHARE = 20
"""A short answer is conspicuous where half of the answers are this many times as long."""
_WORD = re.compile(r"\w", re.UNICODE)


@dataclass(frozen=True, slots=True)
class RowText:
    """A row's text, taken apart."""

    is_conversation: bool
    messages: tuple[tuple[str, str], ...]
    """(role, content); of a text one with the role "", of prompt and completion "prompt" and "completion"."""
    answers: tuple[str, ...]
    """What is there to be learned: the assistant's contents, the completion."""
    asked: str
    """What stands before the last answer; empty where nothing does."""
    whole: str
    """Everything that could differ between two rows, as JSON."""

    def near(self) -> str:
        """What near duplicates are compared by: without system messages, which all rows may share."""
        return "\n".join(content for role, content in self.messages if role not in ("system", "developer"))


def row_text(row: TrainingRow) -> RowText:
    """Take a checked row apart."""
    whole = json.dumps([row.prompt, row.body, row.tools], ensure_ascii=False, sort_keys=True, default=str)
    if isinstance(row.body, str):
        if row.prompt is None:
            return RowText(False, (("", row.body),), (), "", whole)
        prompt = str(row.prompt)
        return RowText(False, (("prompt", prompt), ("completion", row.body)), (row.body,), prompt, whole)
    contents = tuple((str(message["role"]), str(message.get("content") or "")) for message in row.messages)
    answers = tuple(
        content
        for (role, content), message in zip(contents[-len(row.body) :], row.body, strict=True)
        if role == "assistant" and not message.get("tool_calls")
    )
    last = max((number for number, (role, _) in enumerate(contents) if role == "assistant"), default=len(contents))
    return RowText(True, contents, answers, json.dumps(contents[:last], ensure_ascii=False), whole)


class TextChecks:
    """Looks at each row's text, and keeps what can only be judged when all are known."""

    def __init__(self, ledger: Ledger, special_tokens: Sequence[str], end: str | None) -> None:
        """`end`: the end-of-text token, which a text may end with."""
        self._ledger = ledger
        self._end = end
        self._special = any_of(token for token in special_tokens if token.strip())
        self._short: list[tuple[str, str]] = []
        self._answer_lengths: list[int] = []

    def look(self, text: RowText, where: str) -> None:
        """One row."""
        contents = "\n".join(content for _, content in text.messages)
        if self._end and not text.is_conversation:
            contents = contents.removesuffix(self._end)
        self._look_for_markers(text, contents, where)
        if text.is_conversation and text.messages[-1][0] in ("user", "system", "developer"):
            self._ledger.see(
                "ends_with_user",
                Severity.WARNING,
                f"The conversation ends with a message of the {text.messages[-1][0]}, which nobody answers.",
                "Remove the last message, or add its answer.",
                where=where,
                shown=text.messages[-1][1],
            )
        for answer in text.answers:
            self._look_at_answer(answer.strip(), where)

    def _look_for_markers(self, text: RowText, contents: str, where: str) -> None:
        special = set(self._special.findall(contents))
        if special:
            shown = ", ".join(sorted(special))
            is_text = not text.is_conversation
            self._ledger.see(
                "special_tokens",
                Severity.NOTE if is_text else Severity.WARNING,
                f"The row's own text holds special tokens of this tokenizer ({shown}): they act as such."
                if is_text
                else f"A message holds a special token of this tokenizer ({shown}): the model reads it as the end or "
                "beginning of a turn.",
                "Meant, if you wrote the template into the text; else remove it."
                if is_text
                else "Remove it from the text, or break it up.",
                where=where,
                shown=around(contents, shown.split(", ")[0]),
                variant=shown,
            )
        families: dict[str, str] = {}
        for match in _MARKER.finditer(contents):
            if match[0] not in special:
                families.setdefault(_FAMILY[match[0]], match[0])
        for family, marker in families.items():
            self._ledger.see(
                "foreign_markers",
                Severity.WARNING,
                f"The text holds markers of another chat template ({family}: {marker.strip()}); with this one they "
                "are ordinary text, and are learned as such.",
                "Take the text apart into messages, and let the template write the markers.",
                where=where,
                shown=around(contents, marker),
                variant=family,
            )

    def _look_at_answer(self, answer: str, where: str) -> None:
        length = len(answer)
        self._answer_lengths.append(length)
        if not _WORD.search(answer) or answer.casefold().strip(" .") in _PLACEHOLDERS:
            self._ledger.see(
                "near_empty_answer",
                Severity.WARNING,
                "An answer says nothing: punctuation only, or a placeholder.",
                "Remove the row, or write the answer: what is trained is what the model will say.",
                where=where,
                shown=f"answer: {answer!r}",
            )
        elif length <= _SHORT_CHARACTERS:
            self._short.append((where, answer))

    def finish(self) -> None:
        """Note answers that are short among long ones."""
        if not self._short:
            return
        median = int(np.median(self._answer_lengths))
        for where, answer in self._short:
            if len(answer) * _SHORT_SHARE <= median:
                self._ledger.see(
                    "short_answer",
                    Severity.NOTE,
                    f"An answer has {_SHORT_CHARACTERS} characters at most, where half of all have {median:,} and "
                    "more.",
                    "Look whether these are whole.",
                    where=where,
                    shown=f"answer: {answer!r}",
                )


def around(text: str, part: str, characters: int = 40) -> str:
    """A part of a text with what stands around it."""
    place = max(0, text.find(part))
    start, end = max(0, place - characters), place + len(part) + characters
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
