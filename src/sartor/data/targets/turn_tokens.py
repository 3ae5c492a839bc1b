"""From trained characters to trained tokens: which tokens of a text are what a model generates after its prompt.

What comes in: texts and the trained turns in each.  What goes out: ids, and for each its message, from 1, or 0.  What
it keeps true: a turn's tokens begin where those of the prompt end, as they do when a model is used.

Offsets alone prove nothing.  Worked example: a prompt ends with two newlines; alone it is tokenized with `\\n\\n` as
its last token, but the whole row may have `\\n`, `\\n` there, and no token lies across the border.  The model would
be trained behind two tokens that it never sees.  So the ids before a turn are compared with those of the prompt
alone.  Where they differ, the text is cut at the turn's start and its parts are tokenized apart, which is what
generation sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sartor.data.targets.prover import Turn, Unproven
from sartor.data.tokens.layout import TokenBytes, is_byte_level, located
from sartor.data.tokens.tokenizing import BatchTokenizer, Encodings, TextBatch, Tokenization

MAX_HEADS = 4096
"""Heads of turns whose ids are kept: templates write few different ones."""


_JOINED = (
    "the tokenizer joins the prompt's end and the answer's beginning. Let the chat template end its prompt with a "
    "special token or a newline."
)


class TurnTokenizer:
    """Tokenizes texts, and marks the tokens of their trained turns with the number of their message, from 1."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._batches = BatchTokenizer(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._is_byte_level = is_byte_level(tokenizer.backend_tokenizer)
        self._heads: dict[str, list[int]] = {}
        self._end_ids: dict[str, int] = {}
        self._newline = self._ids("\n")
        self.num_cut_turns = 0
        """Turns at whose start the text was cut."""

    @cached_property
    def _token_bytes(self) -> TokenBytes | None:
        return TokenBytes.of(self._tokenizer.backend_tokenizer)

    def encodings(self, texts: Sequence[str], turns: Sequence[Sequence[Turn]]) -> Tokenization[Encodings]:
        """What `targets` needs of each text, step by step; offsets are asked for only where lengths do not tell.

        What stands before the turns is tokenized along, where it has to be compared as a whole.
        """
        found = yield from located(texts, self._token_bytes)
        if not self._is_byte_level:
            heads = [text[: turn.start] for text, inside in zip(texts, turns, strict=True) for turn in inside]
            encodings = (yield _rendered(heads)) if heads else []
            self._heads = {head: encoding.ids for head, encoding in zip(heads, encodings, strict=True)}
        return found

    def targets(self, text: str, turns: Sequence[Turn], encoding: Any) -> tuple[list[int], list[int]]:
        """Ids of one text, and for each the number of the trained message it is of, from 1; 0: of none.

        Args:
            encoding: the tokenizer's encoding of the text.

        Raises:
            Unproven: an end token is not a token of its own.
        """
        ids = encoding.ids
        starts = [self._start_token(text, turn.start, encoding, ids) for turn in turns]
        cuts = [turn.start for turn, token in zip(turns, starts, strict=True) if token is None]
        if not cuts:
            return ids, self._marks(turns, starts, encoding, ids, 0)
        self.num_cut_turns += len(cuts)
        all_ids: list[int] = []
        all_marks: list[int] = []
        for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True):
            inside = [turn for turn in turns if first <= turn.start < last]
            ids, marks = self._piece(text[first:last], inside, first)
            all_ids += ids
            all_marks += marks
        return all_ids, all_marks

    def split(self, text: str, start: int) -> tuple[list[int], int, bool]:
        """Ids of a text, how many of them stand before its character `start`, and whether it had to be cut there.

        Raises:
            Unproven: the tokenizer joins what stands on both sides, also when they are tokenized apart.
        """
        (encoding,) = self._batches(_rendered([text]))
        ids: list[int] = encoding.ids
        token = self._start_token(text, start, encoding, ids)
        if token is not None:
            return ids, token, False
        head = self._head_ids(text[:start])
        return head + self._piece(text[start:], [], start)[0], len(head), True

    def _piece(self, piece: str, turns: Sequence[Turn], first: int) -> tuple[list[int], list[int]]:
        """A part of a text that begins with its character `first`.

        Tokenizers of the SentencePiece family put a mark before a text, which only the beginning of a row may have: a
        later part is tokenized behind a newline, whose tokens are then taken away.
        """
        skipped = 0
        if first and not self._is_byte_level:
            piece, first, skipped = "\n" + piece, first - 1, len(self._newline)
        (encoding,) = self._batches(_rendered([piece]))
        ids = encoding.ids
        if ids[:skipped] != self._newline[:skipped]:
            raise Unproven("tokens across a turn's start", _JOINED)
        starts = [
            skipped
            if turn.start == first + bool(skipped)
            else self._start_token(piece, turn.start - first, encoding, ids)
            for turn in turns
        ]
        return ids[skipped:], self._marks(turns, starts, encoding, ids, first)[skipped:]

    def _marks(
        self, turns: Sequence[Turn], starts: Sequence[int | None], encoding: Any, ids: list[int], first: int
    ) -> list[int]:
        """The message for each token of a turn, of a text whose first character has the number `first`."""
        marks = [0] * len(ids)
        for turn, start in zip(turns, starts, strict=True):
            if start is None:
                raise Unproven("tokens across a turn's start", _JOINED)
            end = encoding.char_to_token(turn.end - len(turn.end_token) - first)
            if end is None or ids[end] != self._id_of(turn.end_token):
                raise Unproven(
                    "end token is no token",
                    f"the tokenizer joins {turn.end_token!r} with what is next to it, so the turn's end cannot be "
                    "trained.",
                )
            marks[start : end + 1] = [turn.message + 1] * (end + 1 - start)
        return marks

    def _start_token(self, text: str, start: int, encoding: Any, ids: list[int]) -> int | None:
        """The token that begins at a character, where all before it are those of the text before it alone; else None.

        What follows a special token does not depend on what precedes it, in a byte-level tokenizer: there it is
        enough to compare from the last one on, and these few heads can be kept.  Offsets of tokens only say where
        special tokens are: those of others may leave out spaces.
        """
        first, begin = 0, 0
        if self._is_byte_level:
            behind = encoding.char_to_token(start)  # no token behind the start's own can end before it
            for token in range(len(ids) - 1 if behind is None else behind, -1, -1):
                if ids[token] in self._special_ids:
                    begins, ends = encoding.token_to_chars(token)
                    if ends <= start:
                        first, begin = token, begins
                        break
        head = self._head_ids(text[begin:start])
        token = first + len(head)
        if ids[first:token] != head or (token and encoding.token_to_chars(token - 1)[1] > start):
            return None
        return token

    def _id_of(self, token: str) -> int:
        """The id of an end token."""
        if token not in self._end_ids:
            self._end_ids[token] = self._tokenizer.convert_tokens_to_ids(token)
        return self._end_ids[token]

    def _head_ids(self, head: str) -> list[int]:
        """Ids of what stands before a turn."""
        ids = self._heads.get(head)
        if ids is None:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            ids = self._heads[head] = self._ids(head)
        return ids

    def _ids(self, text: str) -> list[int]:
        (encoding,) = self._batches(_rendered([text]))
        ids: list[int] = encoding.ids
        return ids


def _rendered(texts: Sequence[str]) -> TextBatch:
    """Texts whose tokens are to be found by their characters.  A template has written the special tokens."""
    return TextBatch(texts, is_rendered=True, needs_characters=True)
