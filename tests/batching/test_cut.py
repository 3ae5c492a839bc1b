"""A cut loses nothing, repeats nothing and crosses nothing; targets are shifted once, within each document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.batching.cut import cut_flat, cut_padded, make_micro_batch
from sartor.records import IGNORE_INDEX, Example

LENGTHS = st.lists(st.integers(1, 40), max_size=30)
TOKENS = st.integers(1, 100)


@given(LENGTHS, TOKENS)
def test_flat_cut_keeps_every_example_once_and_order_within_groups(lengths: list[int], tokens: int) -> None:
    groups = cut_flat(lengths, tokens)

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(groups)
    assert groups == sorted(map(sorted, groups))


@given(LENGTHS, TOKENS)
def test_padded_cut_keeps_every_example_once(lengths: list[int], tokens: int) -> None:
    groups = cut_padded(lengths, tokens)

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(groups)


@given(LENGTHS, TOKENS)
def test_no_group_is_larger_than_asked_but_a_single_long_example(lengths: list[int], tokens: int) -> None:
    for group in cut_flat(lengths, tokens):
        assert sum(lengths[index] for index in group) <= tokens or len(group) == 1
    for group in cut_padded(lengths, tokens):
        assert len(group) * max(lengths[index] for index in group) <= tokens or len(group) == 1


@given(LENGTHS, TOKENS)
def test_no_more_groups_than_filling_up_in_order(lengths: list[int], tokens: int) -> None:
    filled, room = 0, 0
    for length in lengths:
        if not filled or length > room:
            filled, room = filled + 1, tokens
        room -= length

    assert len(cut_flat(lengths, tokens)) <= filled


@given(st.integers(1, 10), st.integers(1, 40), st.integers(10, 100))
def test_groups_of_equal_examples_are_even_and_as_few_as_can_be(length: int, count: int, tokens: int) -> None:
    sizes = [len(group) for group in cut_flat([length] * count, tokens)]

    assert len(sizes) == -(-count // (tokens // length))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ([5, 5, 5, 5], 16, [[0, 2], [1, 3]]),
        ([20, 1, 1], 16, [[0], [1, 2]]),
        ([], 16, []),
        ([4, 4, 4], 12, [[0, 1, 2]]),
        ([9, 9, 7, 7], 16, [[0, 2], [1, 3]]),
        ([1, 1, 1, 1, 4], 6, [[0, 1, 2, 3], [4]]),
        ([3, 30, 3], 16, [[0, 2], [1]]),
        ([6, 6, 4, 4, 4], 12, [[0, 1], [2, 3, 4]]),
    ],
)
def test_flat_cut_by_hand(lengths: list[int], tokens: int, expected: list[list[int]]) -> None:
    assert cut_flat(lengths, tokens) == expected


def test_padded_cut_by_hand() -> None:
    assert cut_padded([2, 9, 3, 10], 20) == [[3, 1], [2, 0]]


def test_padded_cut_counts_a_packed_blocks_documents() -> None:
    assert cut_padded([5, 5, 4], 20, [3, 2, 2]) == [[0], [1, 2]]


def test_documents_end_to_end_with_targets_shifted_once() -> None:
    micro = make_micro_batch([Example([7, 8, 9], [7, 8, 9]), Example([4, 5], [IGNORE_INDEX, 5])], [10, 11])

    assert micro.input_ids_T.tolist() == [7, 8, 9, 4, 5]
    assert micro.position_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert micro.document_lengths == (3, 2)
    assert micro.target_rows_N.tolist() == [0, 1, 3]
    assert micro.targets_N.tolist() == [8, 9, 5]
    assert micro.input_ids_T.dtype == micro.target_rows_N.dtype == torch.int64
    assert (micro.num_tokens, micro.num_targets) == (5, 3)


def test_a_documents_first_token_is_nobodys_target() -> None:
    micro = make_micro_batch([Example([7], [7]), Example([4, 5], [4, IGNORE_INDEX])], [0, 1])

    assert micro.num_targets == 0
    assert micro.target_rows_N.dtype == torch.int64


def test_packed_blocks_are_their_documents() -> None:
    packed = Example([7, 8, 9, 4, 5], [7, 8, 9, 4, 5], (3, 2))

    micro = make_micro_batch([Example([1, 2], [1, 2]), packed], [5, 6])

    assert micro.document_lengths == (2, 3, 2)
    assert micro.position_ids_T.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert micro.target_rows_N.tolist() == [0, 2, 3, 5]
    assert micro.targets_N.tolist() == [2, 8, 9, 5]


def test_a_wrapped_block_is_one_running_text() -> None:
    micro = make_micro_batch([Example([7, 8, 9, 4], [7, 8, 9, 4])], [0])

    assert micro.document_lengths == (4,)
    assert micro.targets_N.tolist() == [8, 9, 4]


def test_keys_are_plain_integers_that_no_cut_changes() -> None:
    one, two = Example([7, 8], [7, 8]), Example([1, 2, 3], [1, 2, 3], (2, 1))

    together = make_micro_batch([one, two], np.arange(3, 5)).document_keys  # type: ignore[arg-type]

    assert together == make_micro_batch([one], [3]).document_keys + make_micro_batch([two], [4]).document_keys
    assert len(set(together)) == 3
    assert all(type(key) is int for key in together)


@st.composite
def _examples(draw: st.DrawFn) -> list[Example]:
    examples = []
    for documents in draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=6)):
        ids = draw(st.lists(st.integers(0, 99), min_size=sum(documents), max_size=sum(documents)))
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        labels = [token if train else IGNORE_INDEX for token, train in zip(ids, trained, strict=True)]
        examples.append(Example(ids, labels, tuple(documents) if len(documents) > 1 else ()))
    return examples


@given(_examples())
def test_every_target_is_the_next_token_of_the_same_document(examples: list[Example]) -> None:
    micro = make_micro_batch(examples, range(len(examples)))

    expected = []
    row = 0
    for example in examples:
        place = 0
        for length in example.seq_lengths or (len(example.input_ids),):
            for token in range(place, place + length):
                if token > place and example.labels[token] != IGNORE_INDEX:
                    expected.append((row + token - 1, example.input_ids[token]))
            place += length
        row += len(example.input_ids)
    assert list(zip(micro.target_rows_N.tolist(), micro.targets_N.tolist(), strict=True)) == expected
    assert sum(micro.document_lengths) == micro.num_tokens == row
    assert all(micro.input_ids_T[at + 1] == target for at, target in expected)
