"""Which few layers stand for many."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.memory.extrapolate import layer_subsets, places


def _of(text: str) -> list[str]:
    letters = {letter: number for number, letter in enumerate(dict.fromkeys(text))}
    back = {number: letter for letter, number in letters.items()}
    return ["".join(back[kind] for kind in subset) for subset in layer_subsets([letters[letter] for letter in text])]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("k" * 32, ["kkk", "kkkk", "kkkkk"]),
        ("k" * 4, []),
        ("r" * 8 + "k" * 24, ["rrkk", "rrrkk", "rrkkk", "rrrkkk"]),
        ("rr" + "k" * 29, ["rrkk", "rrkkk", "rrkkkk"]),
        ("sssssf" * 5 + "ssss", ["sfss", "ssfss", "sfsfss", "ssfsfss"]),
        ("sf" * 12, ["sfsf", "sfsfsf", "sfsfsfsf"]),
        ("ccaccaccacacacac", ["ccac", "cccac", "ccacac", "ccaccac"]),
    ],
)
def test_sketches_show_one_more_of_each_kind_and_one_to_check(layers: str, expected: list[str]) -> None:
    assert _of(layers) == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 12), st.lists(st.integers(0, 2), max_size=4))
def test_sketches_are_made_of_the_models_own_layers(pattern: list[int], times: int, tail: list[int]) -> None:
    model = pattern * times + tail
    pairs = set(pairwise(model))
    for subset in layer_subsets(model):
        assert set(pairwise(subset)) == pairs
        assert (subset[0], subset[-1]) == (model[0], model[-1])
        found = places(model, subset)
        assert len(set(found)) == len(found)
        assert [model[place] for place in found] == list(subset)
