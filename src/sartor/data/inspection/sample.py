"""Rows token by token, as they are shown: each token's own text in its place, and whether it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sartor.data.inspection.record import Sample, Token
from sartor.records import Example

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
    number = len(input_ids)
    num_kept = number if max_length is None else min(number, max_length)
    kept = range(number - num_kept, number) if mode == "keep_end" else range(num_kept)
    example = Example(input_ids, labels)
    return Sample(where, tokens_of(example, tokenizer, kept, at_most), number, example.num_targets)


def tokens_of(
    example: Example, tokenizer: Any, kept: range | None = None, at_most: int = SHOWN_TOKENS
) -> tuple[Token, ...]:
    """An example's first tokens; those whose places are not in `kept` will be cut off."""
    special = set(tokenizer.all_special_ids)
    texts = token_texts(example.input_ids[:at_most], tokenizer)
    return tuple(
        Token(int(token), text, trained, token in special, kept is not None and place not in kept)
        for place, (token, trained, text) in enumerate(
            zip(example.input_ids, example.is_target.tolist(), texts, strict=False)
        )
    )


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
