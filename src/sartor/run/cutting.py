"""From examples to micro-batches under the plan as it is at that moment.

In: examples with their keys.  Out: micro-batches that hold each document once.  A packed block that is larger than a
micro-batch may be goes through document by document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from sartor.batching.cut import cut_flat, cut_padded, make_micro_batch, split_documents
from sartor.engine.step import Engine
from sartor.records import Example, Layout, MicroBatch


def micro_batches(
    engine: Engine, examples: Sequence[Example], keys: Sequence[int], tokens: int | None = None
) -> Iterator[MicroBatch]:
    """Cut examples as the plan says, or into `tokens` at once."""
    for _, micro in keyed_micro_batches(engine, examples, keys, tokens):
        yield micro


def keyed_micro_batches(
    engine: Engine, examples: Sequence[Example], keys: Sequence[int], tokens: int | None = None
) -> Iterator[tuple[tuple[int, ...], MicroBatch]]:
    """The same, each with the keys of its examples."""
    tokens = tokens or engine.plan.micro_batch_tokens
    padded = engine.plan.layout is Layout.PADDED
    pieces = [piece for parts in map(partial(_pieces, tokens, padded), examples, keys) for piece in parts]
    lengths = [piece.example.document_lengths for piece in pieces]
    if padded:  # a packed block's documents become rows of their own
        groups = cut_padded([max(one) for one in lengths], tokens, [len(one) for one in lengths])
    else:
        groups = cut_flat([sum(one) for one in lengths], tokens)
    for group in groups:
        chosen = [pieces[index] for index in group]
        names = tuple(piece.key for piece in chosen)
        micro = make_micro_batch(
            [piece.example for piece in chosen], names, engine.device, [piece.first_document for piece in chosen]
        )
        yield names, micro


@dataclass(frozen=True, slots=True)
class _Piece:
    """An example, or a document of a packed block that is too large to go through as a whole."""

    example: Example
    key: int
    first_document: int = 0


def _pieces(tokens: int, padded: bool, example: Example, key: int) -> list[_Piece]:
    lengths = example.document_lengths
    size = len(lengths) * max(lengths) if padded else sum(lengths)
    parts = split_documents(example) if size > tokens else [example]
    return [_Piece(part, key, number) for number, part in enumerate(parts)]
