"""Blocks are trl's, in trl's order; nothing is lost, doubled or crossed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.batching.packing import ROWS_PER_GROUP, STRATEGIES, pack
from sartor.errors import ConfigurationError
from sartor.records import Packing


def blocks_of(packing: Packing) -> list[list[tuple[int, int, int]]]:
    """(row, start, length) of each piece, block by block."""
    ends = np.cumsum(packing.pieces_per_block)
    pieces = list(zip(packing.rows.tolist(), packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    return [pieces[end - count : end] for end, count in zip(ends, packing.pieces_per_block, strict=True)]


def tokens_of(packing: Packing, rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The blocks' tokens and their pieces' lengths, read off a packing."""
    blocks = blocks_of(packing)
    tokens = [
        [token for row, start, length in block for token in rows[row][start : start + length]] for block in blocks
    ]
    return tokens, [[length for _, _, length in block] for block in blocks]


def number(lengths: list[int]) -> list[list[int]]:
    """Rows of the given lengths whose tokens are all different."""
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def trl_blocks(
    rows: list[list[int]], block_tokens: int, strategy: str
) -> tuple[list[list[int]], list[list[int]] | None]:
    from datasets import Dataset, Features, List, Value
    from trl.data_utils import pack_dataset

    features = Features({"input_ids": List(Value("int64"))})
    packed = pack_dataset(Dataset.from_dict({"input_ids": rows}, features=features), block_tokens, strategy)[:]
    return packed["input_ids"], packed.get("seq_lengths")


def test_the_worked_example_of_each_strategy() -> None:
    lengths = [5, 2, 3, 1]
    assert blocks_of(pack(lengths, 4, "bfd")) == [[(0, 0, 4)], [(2, 0, 3), (3, 0, 1)], [(1, 0, 2)]]
    assert blocks_of(pack(lengths, 4, "bfd_split")) == [[(0, 0, 4)], [(2, 0, 3), (0, 4, 1)], [(1, 0, 2), (3, 0, 1)]]
    assert blocks_of(pack(lengths, 4, "wrapped")) == [
        [(0, 0, 4)],
        [(0, 4, 1), (1, 0, 2), (2, 0, 1)],
        [(2, 1, 2), (3, 0, 1)],
    ]


def test_the_records_example() -> None:
    packing = pack([3, 6], 4, "bfd_split")
    assert packing.rows.tolist() == [1, 0, 1]
    assert packing.starts.tolist() == [0, 0, 4]
    assert packing.lengths.tolist() == [4, 3, 2]
    assert packing.pieces_per_block.tolist() == [1, 1, 1]


def test_a_piece_goes_where_least_room_is_left_and_among_equals_where_it_has_been_left_longest() -> None:
    # Blocks of 10: 7 and 7 leave room 3 twice, 6 leaves 4.  The 3 goes beside the first 7, the 4 beside the 6.
    assert blocks_of(pack([7, 7, 6, 3, 4], 10, "bfd")) == [[(0, 0, 7), (3, 0, 3)], [(1, 0, 7)], [(2, 0, 6), (4, 0, 4)]]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("num_rows", "longest", "block_tokens"), [(2500, 40, 64), (1700, 300, 128), (40, 9, 3)])
def test_blocks_and_their_order_are_trls(strategy: str, num_rows: int, longest: int, block_tokens: int) -> None:
    lengths = np.random.default_rng(num_rows).integers(1, longest, num_rows).tolist()
    rows = number(lengths)
    tokens, piece_lengths = tokens_of(pack(lengths, block_tokens, strategy), rows)
    expected_tokens, expected_lengths = trl_blocks(rows, block_tokens, strategy)
    assert tokens == expected_tokens
    assert expected_lengths in (None, piece_lengths)
    assert (expected_lengths is None) == (strategy == "wrapped")


lists_of_lengths = st.lists(st.integers(0, 30), max_size=60)


@given(lists_of_lengths, st.integers(1, 20), st.sampled_from(["bfd_split", "wrapped"]))
@settings(max_examples=200, deadline=None)
def test_splitting_strategies_lose_and_double_no_token(lengths: list[int], block_tokens: int, strategy: str) -> None:
    rows = number(lengths)
    tokens, _ = tokens_of(pack(lengths, block_tokens, strategy), rows)
    assert sorted(token for block in tokens for token in block) == list(range(sum(lengths)))
    assert all(0 < len(block) <= block_tokens for block in tokens)


@given(lists_of_lengths, st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_bfd_keeps_the_start_of_every_row_in_one_piece(lengths: list[int], block_tokens: int) -> None:
    packing = pack(lengths, block_tokens, "bfd")
    assert sorted(packing.rows.tolist()) == [row for row, length in enumerate(lengths) if length]
    assert not packing.starts.any()
    assert packing.lengths.tolist() == [min(lengths[row], block_tokens) for row in packing.rows.tolist()]
    assert all(0 < sum(length for *_, length in block) <= block_tokens for block in blocks_of(packing))


@given(lists_of_lengths, st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_wrapped_fills_every_block_but_the_last_and_keeps_the_order(lengths: list[int], block_tokens: int) -> None:
    tokens, _ = tokens_of(pack(lengths, block_tokens, "wrapped"), number(lengths))
    assert [token for block in tokens for token in block] == list(range(sum(lengths)))
    assert all(len(block) == block_tokens for block in tokens[:-1])


def test_a_row_stays_within_its_group() -> None:
    packing = pack([1] * (ROWS_PER_GROUP + 1), 4096, "bfd")
    assert packing.pieces_per_block.tolist() == [ROWS_PER_GROUP, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_give_no_blocks(strategy: str) -> None:
    for lengths in ([], [0, 0]):
        packing = pack(lengths, 8, strategy)
        assert blocks_of(packing) == []
        assert packing.rows.dtype == np.int64


def test_an_unknown_strategy_and_an_empty_block_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'best' is not known\. Choose one of bfd, bfd_split, wrapped"):
        pack([1], 4, "best")
    with pytest.raises(ConfigurationError, match="at least 1 token"):
        pack([1], 0, "bfd")


@pytest.mark.slow
def test_a_million_lengths_take_seconds() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 1_000_000)
    start = time.process_time()
    packing = pack(lengths, 1024, "bfd")
    seconds = time.process_time() - start
    print(f"packed 1,000,000 rows into {len(packing.pieces_per_block):,} blocks in {seconds:.2f} s of CPU time")
    assert seconds < 10  # measured 1 to 2 s; a walk over all open blocks takes minutes
