"""Token ids to text, as they come.

A character may be spread over several tokens, and some decoders look at a token's neighbours (a leading space, a run of
byte tokens).  Pieces joined equal the text of all tokens decoded at once, and no piece waits for a word to end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"
_THOUGHT = re.compile(r"</?\w*(think|thought|reason)\w*/?>", re.IGNORECASE)


def hidden_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids that are control signals and no text: all special tokens, but for marks of thought such as `<think>`.

    Some tokenizers list those as special too; a reader wants to see them.
    """
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    return frozenset(i for i in special if not _THOUGHT.fullmatch(str(tokenizer.convert_ids_to_tokens(i))))


def decode(tokenizer: Any, ids: Sequence[int], hidden: frozenset[int]) -> str:
    """The text of `ids` without the `hidden` ones, exactly as it was tokenized: spaces are not tidied."""
    kept = [i for i in ids if i not in hidden]
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class TextDecoder:
    """Decodes one answer as its tokens come.

    A window of the last tokens is decoded anew at each step.  Text ends in U+FFFD while its last character is
    incomplete: that end is held back.  The window begins where a piece of text ended cleanly, one piece back, so that
    the decoder sees what a leading space follows.

    Example, byte-level tokens of "aé": push(a) -> "a"; push(first byte of é) -> ""; push(second byte) -> "é".
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden_tokens(tokenizer)
        self._ids: list[int] = []
        self._window_start = 0
        self._clean_end = 0
        """Tokens up to here decode to complete characters, all of them handed out."""
        self._sent = ""
        """What of the window's text was handed out."""

    def push(self, token_id: int) -> str:
        """Take one token; return the text that has become certain, often one word or character, possibly ""."""
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        text = self._text(self._window_start)
        certain = text.rstrip(_REPLACEMENT)
        if len(certain) <= len(self._sent):
            return ""
        piece = certain[len(self._sent) :]
        if certain == text:
            self._window_start, self._clean_end = self._clean_end, len(self._ids)
            self._sent = self._text(self._window_start)
        else:
            self._sent = certain
        return piece

    def end(self) -> str:
        """Return what was held back: no more tokens come, so an incomplete character stays U+FFFD."""
        rest = self._text(self._window_start)[len(self._sent) :]
        self._sent += rest
        return rest

    def _text(self, start: int) -> str:
        return decode(self._tokenizer, self._ids[start:], frozenset())
