"""Texts to tokens in the tokenizer's Rust code: many in one call, over all cores, beside Python.

What comes in: batches of texts.  What goes out: the tokenizer's encodings of them.  What it keeps true: ids equal those
of `tokenizer(texts)`.

Encoding a batch of rows is written as a generator: where it needs tokens it yields a `TextBatch` and is sent the
encodings.  So it reads from top to bottom, and whoever drives it decides when to tokenize: `run` at once, `run_ahead`
on a thread, while Python prepares the next batch of rows.  Rust needs no Python while it works, so both run at the same
time; all Python of all batches runs on one thread, in the order of the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sartor import compat

T = TypeVar("T")

AHEAD = 2
"""Batches whose texts are with the tokenizer while the next is prepared: one, and one that is ready when it is done."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts to tokenize."""

    texts: Sequence[str]
    is_rendered: bool = False
    """Whether a template has written the special tokens already, so that the tokenizer adds none."""
    needs_characters: bool = False
    """Whether the encodings will be asked where in the text their tokens are; it costs a quarter more."""


Encodings = Sequence[Any]
"""One object for each text, with its `ids`, and `char_to_token` and so on where characters were asked for."""
Tokenization = Generator[TextBatch, Encodings, T]
"""Something that needs tokens on its way to a result."""


@dataclass(frozen=True, slots=True)
class PlainEncoding:
    """Ids of one text, of a tokenizer that knows nothing else about them."""

    ids: list[int]


class BatchTokenizer:
    """Tokenizes batches; of a fast tokenizer the Rust code is called directly."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if is_stock(tokenizer) else None

    def __call__(self, batch: TextBatch) -> Encodings:
        """The encodings of a batch's texts, in order."""
        texts = list(batch.texts)
        if not texts:
            return []
        if self._backend is None:
            return self._encode_slowly(texts, batch)
        self.reset()
        encode = self._backend.encode_batch if batch.needs_characters else self._backend.encode_batch_fast
        return encode(texts, add_special_tokens=not batch.is_rendered)

    def reset(self) -> None:
        """What the tokenizer's own call does first: neither cut nor pad, and treat special tokens as it is set to."""
        assert self._backend is not None
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        if self._backend.encode_special_tokens != self._tokenizer.split_special_tokens:
            self._backend.encode_special_tokens = self._tokenizer.split_special_tokens

    def _encode_slowly(self, texts: list[str], batch: TextBatch) -> Encodings:
        options = {"add_special_tokens": False} if batch.is_rendered else {}
        found = self._tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
        )
        return found.encodings or [PlainEncoding(ids) for ids in found["input_ids"]]


def is_stock(tokenizer: Any) -> bool:
    """Whether calling a tokenizer is calling its Rust code: a fast one, of no class that does it another way."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    kind = type(tokenizer)
    return (
        kind.__call__ is PreTrainedTokenizerBase.__call__
        and compat.encodes_as_usual(kind)
        and kind.apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    )


def run(work: Tokenization[T], tokenize: Callable[[TextBatch], Encodings]) -> T:
    """The result of a tokenization, now."""
    try:
        batch = next(work)
        while True:
            batch = work.send(tokenize(batch))
    except StopIteration as end:
        return end.value


def run_ahead(works: Iterable[Tokenization[T]], tokenize: Callable[[TextBatch], Encodings]) -> Generator[T]:
    """The results of many, in order; each one's texts are tokenized while the next ones are prepared.

    Closed before its end, it waits for the calls that are under way, and starts no other.
    """
    waiting: deque[tuple[Tokenization[T], Future[Encodings] | None, T | None]] = deque()
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="tokenize") as pool:

        def begun(work: Tokenization[T]) -> tuple[Tokenization[T], Future[Encodings] | None, T | None]:
            try:
                return work, pool.submit(tokenize, next(work)), None
            except StopIteration as end:  # it needs no tokens
                return work, None, end.value

        def finished(work: Tokenization[T], first: Future[Encodings]) -> T:
            encodings = first.result()
            try:
                while True:
                    encodings = pool.submit(tokenize, work.send(encodings)).result()
            except StopIteration as end:
                return end.value

        for work in works:
            waiting.append(begun(work))
            if len(waiting) > AHEAD:
                work, future, result = waiting.popleft()
                yield finished(work, future) if future is not None else result  # type: ignore[misc]
        while waiting:
            work, future, result = waiting.popleft()
            yield finished(work, future) if future is not None else result  # type: ignore[misc]
