"""Whether the template has written what stands in the row: compares each message with the text that is trained on.

What comes in: checked rows and their tokens.  What goes out: findings about fields that are left out, and about
earlier answers that are written otherwise.  Whitespace aside: templates strip.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.reading import Batch
from sartor.data.inspection.record import Severity
from sartor.data.rows.formats import TrainingRow
from sartor.data.templates.fields import fields_of
from sartor.data.templates.provenance.shadow import Kind

_THOUGHT = re.compile(r"(?s)^.*</think(?:ing)?>")

_NEVER_ESCAPED = re.compile(r"[\w .,-]+", re.ASCII)
"""Text that any writer of JSON writes as it is."""


def look_at_written(batch: Batch, tokenizer: Any, ledger: Ledger) -> None:
    """Compare the conversations of a batch with their text; other rows are written as they are."""
    conversations = [
        (row, where)
        for row, where in zip(batch.rows, batch.places, strict=True)
        if row is not None and isinstance(row.body, list)
    ]
    if not conversations:
        return
    offsets = batch.encoded.offsets.tolist()
    ids = [batch.encoded.input_ids[start:end].tolist() for start, end in pairwise(offsets)]
    written: dict[str, str] = {}
    for where, text in zip(batch.example_places, _decode(tokenizer, ids), strict=True):
        written[where] = written.get(where, "") + _squashed(text)
    for row, where in conversations:
        _compare(row, written[where], where, tokenizer, ledger)


def _decode(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _compare(row: TrainingRow, written: str, where: str, tokenizer: Any, ledger: Ledger) -> None:
    fields = [
        (kind, key, text, f"the {key} of message {number} ({message['role']}): {text}")
        for number, message in enumerate(row.messages, 1)
        for kind, key, text in fields_of(message)
    ]
    for kind, key, text, shown in fields:
        sought = _squashed(text)
        if not sought or sought in written or not _survives(text, tokenizer):
            continue
        if kind is Kind.ARGUMENTS and not _NEVER_ESCAPED.fullmatch(text):
            continue
        answer = _squashed(_THOUGHT.sub("", text))
        if kind is Kind.CONTENT and answer != sought and answer in written:
            ledger.see(
                "rewritten_turns",
                Severity.WARNING,
                "The chat template leaves the thinking out of an earlier answer: it is trained as it is written, "
                "not as it was generated.",
                "Train each answer in a row of its own (unroll), or leave the earlier ones untrained.",
                where=where,
                shown=shown,
            )
        else:
            named = "reasoning" if kind is Kind.REASONING else key
            ledger.see(
                "dropped_fields",
                Severity.WARNING,
                f"The chat template leaves out, or changes, the {named} of a message: that is not trained.",
                "Look at the coloured row; use a template that writes it, or put it into the content.",
                where=where,
                shown=shown,
                variant=named,
            )


def _survives(text: str, tokenizer: Any) -> bool:
    """Whether the tokenizer itself keeps the text: one that lowers case, say, is not the template's doing."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _squashed(_decode(tokenizer, [ids])[0]) == _squashed(text)


def _squashed(text: str) -> str:
    return "".join(text.split())
