"""Where in a text its tokens are, told by their lengths instead of by the tokenizer's offsets, which cost a quarter
more.

What comes in: texts and their ids.  What goes out: for each text an object that answers as the tokenizer's encoding
does, or None where lengths do not tell.  What it keeps true: it only answers where the tokens laid end to end are the
text, byte for byte.

Each character of a byte-level token stands for one byte of the text.  Whatever else happens to a text can only make
tokens cover more of it than their own bytes: added tokens that take the spaces beside them, bytes that the vocabulary
lacks.  So where the lengths add up to the text's, each token is where they say.  A normalizer might exchange bytes for
as many others: texts that are not ASCII are compared as a whole then.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from sartor.data.tokens.tokenizing import Encodings, TextBatch, Tokenization

UNICODE_FORMS = frozenset(["NFC", "NFD", "NFKC", "NFKD"])
"""Normalizers that leave ASCII as it is."""


def steps_of(part: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's normalizer, pre-tokenizer or post-processor, which may be a sequence of them."""
    return [] if part is None else _flat(json.loads(part.__getstate__()))


def _flat(state: dict[str, Any]) -> list[dict[str, Any]]:
    nested = state.get("pretokenizers") or state.get("normalizers") or state.get("processors")
    return [state] if nested is None else [step for part in nested for step in _flat(part)]


def is_byte_level(backend: Any) -> bool:
    """Whether text behind a special token is tokenized without a look at what precedes it, and without a mark before
    it.
    """
    steps = steps_of(backend.pre_tokenizer)
    names = {step["type"] for step in steps}
    return (
        "ByteLevel" in names
        and "Metaspace" not in names
        and not any(step.get("add_prefix_space") for step in steps)
        and all(step["type"] in UNICODE_FORMS for step in steps_of(backend.normalizer))
    )


class LaidText:
    """One text's ids and where they are: answers as the tokenizer's own encoding."""

    __slots__ = ("_base", "_content", "_ends", "_first", "_last", "ids")

    def __init__(self, ids: list[int], content: bytes | None, ends: list[int], first: int, base: int) -> None:
        """`content`: the text's bytes, where they are not its characters; the others: its place among many."""
        self.ids = ids
        self._content = content
        self._ends = ends
        self._first = first
        self._last = first + len(ids)
        self._base = base

    def token_at(self, byte: int) -> int | None:
        """The token that a byte is in; None behind the last."""
        place = bisect_right(self._ends, self._base + byte, self._first, self._last)
        return None if place == self._last else place - self._first

    def char_to_token(self, character: int) -> int | None:
        """The first token that a character is in; None behind the last."""
        if self._content is None:
            return self.token_at(character)
        return self.token_at(len(self._content.decode()[:character].encode()))

    def token_to_chars(self, token: int) -> tuple[int, int]:
        """A token's first and last + 1 character; a character that begins in it counts as a whole."""
        place = self._first + token
        begin = (self._ends[place - 1] if place > self._first else self._base) - self._base
        end = self._ends[place] - self._base
        if self._content is None:
            return begin, end
        # of a character whose bytes are cut, those that are left stand for it
        before = len(self._content[:begin].decode(errors="ignore"))
        return before, len(self._content[:end].decode(errors="replace"))


class TokenBytes:
    """How many bytes of text each token of one tokenizer is."""

    def __init__(self, backend: Any, vocabulary: Mapping[str, int], added: Mapping[int, bytes]) -> None:
        """`vocabulary`: tokens as the model has them; `added`: the texts of those that stand beside it."""
        lengths = np.zeros(max([*vocabulary.values(), *added], default=-1) + 1, np.int64)
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        lengths[list(added)] = [len(text) for text in added.values()]
        self._lengths = lengths
        self._added = added
        self._is_normalized = backend.normalizer is not None
        self._backend = backend
        self._letters = _letters()
        self._texts: dict[int, bytes] = dict(added)

    @classmethod
    def of(cls, backend: Any) -> TokenBytes | None:
        """Of a tokenizer's backend; None where tokens are not the bytes of their text."""
        model = backend.model
        if type(model).__name__ != "BPE" or not is_byte_level(backend):
            return None
        vocabulary = backend.get_vocab(with_added_tokens=False)
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return None
        if model.unk_token and not all(letter in vocabulary for letter in _letters()):
            return None
        added = {number: token.content.encode() for number, token in backend.get_added_tokens_decoder().items()}
        return cls(backend, vocabulary, added)

    def may_be_hidden(self, text: str, laid: LaidText, character: int) -> bool:
        """Whether the tokenizer's offsets may leave a character out: white space at the edge of its token."""
        if not text[character].isspace():
            return False
        token = laid.char_to_token(character)
        return text[character] == " " or token is None or laid.ids[token] in self._added

    def lay_out(self, texts: Sequence[str], ids: Sequence[list[int]]) -> list[LaidText | None]:
        """Where the ids of each text are; None for a text whose ids do not add up to it.

        Worked example: `Hi you` as `Hi` and ` you` ends at bytes 2 and 6.
        """
        counts = [len(row) for row in ids]
        flat = np.fromiter(chain.from_iterable(ids), np.int64, count=sum(counts))
        ends: list[int] = np.cumsum(self._lengths[flat]).tolist()
        laid: list[LaidText | None] = []
        first = base = 0
        for text, row, count in zip(texts, ids, counts, strict=True):
            end = ends[first + count - 1] if count else base
            content = None if text.isascii() else text.encode("utf-8", "surrogatepass")
            num_bytes = len(text) if content is None else len(content)
            if end - base == num_bytes and (content is None or not self._is_normalized or self._joined(row) == content):
                laid.append(LaidText(row, content, ends, first, base))
            else:
                laid.append(None)
            first, base = first + count, end
        return laid

    def _joined(self, ids: list[int]) -> bytes:
        """The bytes of these tokens."""
        for number in set(ids).difference(self._texts):
            token = self._backend.id_to_token(number)
            self._texts[number] = bytes(self._letters.get(letter, 0) for letter in token)
        return b"".join([self._texts[number] for number in ids])


def _letters() -> dict[str, int]:
    """Which byte each character of a byte-level token stands for: printable ones for themselves (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def located(texts: Sequence[str], token_bytes: TokenBytes | None) -> Tokenization[Encodings]:
    """Encodings of rendered texts that tell where their tokens are.

    Offsets are asked for only where they are needed.
    """
    if token_bytes is None:
        return (yield TextBatch(texts, is_rendered=True, needs_characters=True))
    encodings = yield TextBatch(texts, is_rendered=True)
    laid = token_bytes.lay_out(texts, [encoding.ids for encoding in encodings])
    return (yield from with_offsets(texts, laid, [number for number, row in enumerate(laid) if row is None]))


def with_offsets(texts: Sequence[str], encodings: Sequence[Any], numbers: Sequence[int]) -> Tokenization[Encodings]:
    """The same encodings, of which those of these numbers are made again by the tokenizer, with offsets."""
    if not numbers:
        return encodings
    again = yield TextBatch([texts[number] for number in numbers], is_rendered=True, needs_characters=True)
    result = list(encodings)
    for number, encoding in zip(numbers, again, strict=True):
        result[number] = encoding
    return result
