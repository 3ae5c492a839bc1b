"""Packs rows of different lengths into blocks of one length: from lengths alone to pieces and blocks.

What comes in: the number of tokens of each row, in order.  What goes out: a `Packing`, which says which piece of which
row lies where.  What it keeps true: with `bfd_split` and `wrapped` every token lies in exactly one block; with `bfd`
every row is in exactly one block, cut to the block's length at most; no block is longer than asked; the same lengths
always give the same blocks, and the same blocks in the same order as trl 1.16 gives.

Rows are packed a group of 1,000 at a time, as trl does: it bounds how far a row moves from its place, and makes the
blocks of a stream and of a data set in memory the same.
"""

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.errors import ConfigurationError
from sartor.records import Packing

STRATEGIES = ("bfd", "bfd_split", "wrapped")
ROWS_PER_GROUP = 1000
"""Rows that are packed together, trl's number."""

Integers = NDArray[np.int64]


def pack(lengths: Sequence[int] | Integers, block_tokens: int, strategy: str = "bfd") -> Packing:
    """Lay rows of the given lengths into blocks of at most `block_tokens` tokens.

    Strategies, by trl's names:

    - `bfd`: best fit decreasing.  Longest rows first, each into the block with the least room that still holds it.  A
      row longer than a block loses its end.
    - `bfd_split`: the same, after cutting rows longer than a block into blocks and a rest; nothing is lost.
    - `wrapped`: rows end to end, cut every `block_tokens` tokens wherever that falls.  A block is one running text.

    Empty rows are left out.  Best fit decreasing: https://huggingface.co/papers/2404.10830.

    Worked example: lengths 5, 2, 3, 1 in blocks of 4 give, with `bfd`, the blocks [row 0, cut to 4], [row 2, row 3],
    [row 1]; with `bfd_split` [row 0's first 4], [row 2, row 0's last 1], [row 1, row 3].

    Raises:
        ConfigurationError: an unknown strategy, or blocks of less than one token.
    """
    if strategy not in STRATEGIES:
        raise ConfigurationError(f"packing_strategy={strategy!r} is not known. Choose one of {', '.join(STRATEGIES)}.")
    if block_tokens < 1:
        raise ConfigurationError(f"Packing needs blocks of at least 1 token; max_length is {block_tokens}.")
    row_lengths = np.asarray(lengths, dtype=np.int64)
    groups = [
        _pack_group(row_lengths[first : first + ROWS_PER_GROUP], first, block_tokens, strategy)
        for first in range(0, len(row_lengths), ROWS_PER_GROUP)
    ]
    empty = np.zeros(0, np.int64)
    rows, starts, piece_lengths, pieces_per_block = (
        (np.concatenate(column) for column in zip(*groups, strict=True)) if groups else (empty, empty, empty, empty)
    )
    return Packing(rows, starts, piece_lengths, pieces_per_block, keeps_documents=strategy != "wrapped")


def _pack_group(lengths: Integers, first: int, block_tokens: int, strategy: str) -> tuple[Integers, ...]:
    """One group's columns of a `Packing`; `first` is the number of its first row."""
    rows = np.flatnonzero(lengths)
    kept = lengths[rows]
    if strategy == "wrapped":
        pieces, pieces_per_block = _wrap(kept, block_tokens)
    else:
        fragments = _cut_off(kept, block_tokens) if strategy == "bfd" else _split(kept, block_tokens)
        order, pieces_per_block = _best_fit_decreasing(fragments[2], block_tokens)
        pieces = (fragments[0][order], fragments[1][order], fragments[2][order])
    return rows[pieces[0]] + first, pieces[1], pieces[2], pieces_per_block


Pieces = tuple[Integers, Integers, Integers]
"""Row, start and length of each piece."""


def _cut_off(lengths: Integers, block_tokens: int) -> Pieces:
    """One piece per row: its first `block_tokens` tokens."""
    return np.arange(len(lengths)), np.zeros(len(lengths), np.int64), np.minimum(lengths, block_tokens)


def _split(lengths: Integers, block_tokens: int) -> Pieces:
    """Whole blocks of each row and what is left of it, in order: 9 tokens in blocks of 4 are pieces of 4, 4 and 1."""
    counts = -(-lengths // block_tokens)
    rows = np.repeat(np.arange(len(lengths)), counts)
    number_in_row = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = number_in_row * block_tokens
    return rows, starts, np.minimum(lengths[rows] - starts, block_tokens)


def _wrap(lengths: Integers, block_tokens: int) -> tuple[Pieces, Integers]:
    """Pieces between all ends of rows and all ends of blocks, and how many lie in each block."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    block_ends = np.append(np.arange(block_tokens, total, block_tokens, dtype=np.int64), total) if total else ends
    piece_ends = np.union1d(ends, block_ends)
    piece_starts = np.concatenate([np.zeros(1, np.int64), piece_ends[:-1]]) if total else ends
    rows = np.searchsorted(ends, piece_starts, side="right")
    row_starts = ends[rows] - lengths[rows]
    pieces_per_block = np.diff(np.searchsorted(piece_ends, block_ends, side="left") + 1, prepend=0)
    return (rows, piece_starts - row_starts, piece_ends - piece_starts), pieces_per_block


def _best_fit_decreasing(lengths: Integers, block_tokens: int) -> tuple[Integers, Integers]:
    """Order of the pieces, block after block, and pieces per block.

    Of blocks with equal room, the one that has had it longest is taken.  The rooms that open blocks have are the set
    bits of one integer: the least room of at least `length` is then the lowest set bit from there on, two operations on
    machine words instead of a walk through a tree.
    """
    blocks: list[list[int]] = []
    blocks_with_room: defaultdict[int, deque[list[int]]] = defaultdict(deque)
    rooms = 0
    order = np.argsort(-lengths, kind="stable")
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            waiting = blocks_with_room[room]
            block = waiting.popleft()
            if not waiting:
                rooms ^= 1 << room
        else:
            room = block_tokens
            block = []
            blocks.append(block)
        block.append(piece)
        room_left = room - length
        if room_left:
            blocks_with_room[room_left].append(block)
            rooms |= 1 << room_left
    flat = np.fromiter((piece for block in blocks for piece in block), dtype=np.int64, count=len(order))
    return flat, np.fromiter((len(block) for block in blocks), dtype=np.int64, count=len(blocks))
