"""Rows token by token, as they are shown: each token's own text in its place, and whether it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sartor.data.inspection.record import Sample, Token
from sartor.records import target_flags

SHOWN_TOKENS = 3_000
"""Tokens of one sample that are kept: a page of long documents must still open."""


def sample_of(
    where: str,
    input_ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: Any,
    *,
    max_length: int | None,
    mode: str,
    at_most: int = SHOWN_TOKENS,
) -> Sample:
    """One encoded row, nothing of it cut yet; `max_length` and `mode` say what training will cut."""
    special = set(tokenizer.all_special_ids)
    number = len(input_ids)
    kept = number if max_length is None else min(number, max_length)
    first, last = (number - kept, number) if mode == "keep_end" else (0, kept)
    texts = token_texts(input_ids[:at_most], tokenizer)
    is_target = target_flags(labels, [number]).tolist()
    tokens = tuple(
        Token(int(token), text, trained, token in special, not first <= place < last)
        for place, (token, trained, text) in enumerate(zip(input_ids, is_target, texts, strict=False))
    )
    return Sample(where, tokens, number, sum(is_target))


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token as it reads in its place; joined they are the whole text.

    A character of several tokens stands with the last of them, the others have no text.  Each is decoded together with
    those just before it, since decoders drop the space before a first word, and not with all of them, which would take
    time in the square of the length.
    """
    texts: list[str] = []
    before, start = 0, 0  # tokens before `start` are decoded; those from `before` on are the context
    for end in range(1, len(ids) + 1):
        context = _decode(tokenizer, ids[before:start])
        text = _decode(tokenizer, ids[before:end])
        is_whole = not text.endswith("\ufffd") or end - start >= 8 or end == len(ids)
        if not is_whole:
            texts.append("")
            continue
        texts.append(text[len(context) :] if text.startswith(context) else _decode(tokenizer, ids[start:end]))
        before, start = start, end
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    if not len(ids):
        return ""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
