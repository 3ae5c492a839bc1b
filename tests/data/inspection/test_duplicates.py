"""Equal rows are found all, similar ones at a similarity of 80 % and more, and nothing else is called so."""

import random

import pytest

from sartor.data.inspection.duplicates import (
    RUN,
    SKETCH,
    THRESHOLD,
    DuplicateSearch,
    are_near,
    extra_rows,
    similarity,
    sketch,
)
from tests.data.inspection.helpers import sentence


def search(*texts: str, max_rows: int = 100_000) -> DuplicateSearch:
    made = DuplicateSearch(max_rows=max_rows)
    for text in texts:
        made.add(text, text)
    return made


def jaccard(first: str, second: str) -> float:
    """The definition, by sets of strings."""
    one, two = ({text[place : place + RUN] for place in range(len(text) - RUN + 1)} for text in (first, second))
    return len(one & two) / len(one | two)


def changed(text: str, share: float, seed: int) -> str:
    """The text with a share of its characters replaced, in one piece."""
    place = random.Random(seed).randrange(len(text) - int(share * len(text)))
    return text[:place] + "#" * int(share * len(text)) + text[place + int(share * len(text)) :]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_similarity_is_the_jaccard_similarity_of_runs_of_characters(share: float) -> None:
    text = sentence(3, 60)
    other = changed(text, share, 1)
    assert similarity(sketch(text), sketch(other)) == pytest.approx(jaccard(text, other), abs=1e-3)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.78, 0.83, 0.95])
def test_what_is_near_is_what_reaches_the_threshold_also_where_lengths_differ(kept: float) -> None:
    text = sentence(3, 60)
    other = text[: int(len(text) * kept)]
    assert are_near(sketch(text), sketch(other)) is (jaccard(text, other) >= THRESHOLD)
    assert are_near(sketch(other), sketch(text)) is are_near(sketch(text), sketch(other))


def test_similarity_of_long_texts_is_estimated_within_a_few_percent() -> None:
    for seed in range(5):
        text = sentence(seed, 900)
        other = changed(text, 0.1, seed)
        assert len(sketch(text)) == SKETCH
        assert similarity(sketch(text), sketch(other)) == pytest.approx(jaccard(text, other), abs=0.06)


def test_equal_rows_are_one_group_in_the_order_of_the_rows() -> None:
    made = search("b", "a", "c", "a", "b", "a")
    assert [group.rows for group in made.exact()] == [[0, 4], [1, 3, 5]]
    assert extra_rows(made.exact()) == 3
    assert search("a", "b").exact() == []


def test_planted_near_duplicates_are_found_among_many_and_nothing_else() -> None:
    texts = [sentence(number, 40) for number in range(300)]
    planted = {17: 250, 90: 251, 200: 252}
    for original, copy in planted.items():
        texts[copy] = texts[original].replace("e", "33", 2).upper() + "  "
        assert jaccard(texts[original], texts[original].replace("e", "33", 2)) > THRESHOLD
    groups = [group.rows for group in search(*texts).near()]
    assert groups == [[original, copy] for original, copy in planted.items()]


def test_rows_below_the_threshold_are_not_called_near() -> None:
    text = sentence(5, 60)
    other = changed(text, 0.2, 3)
    assert 0.5 < jaccard(text, other) < THRESHOLD
    assert search(text, other).near() == []


def test_of_equal_rows_one_stands_for_all_in_the_search_for_near_ones() -> None:
    text = sentence(8, 40)
    assert [group.rows for group in search(text, text, text + " end", text).near()] == [[0, 2]]


def test_only_so_many_rows_are_searched_for_near_duplicates_but_all_for_exact_ones() -> None:
    text = sentence(8, 40)
    made = search(text, sentence(9, 40), text + " end", text, max_rows=2)
    assert (made.num_rows, made.num_searched) == (4, 2)
    assert made.near() == []
    assert [group.rows for group in made.exact()] == [[0, 3]]


def test_short_and_empty_texts_are_never_near() -> None:
    assert search("", "a", "a short text", "a short text!").near() == []


def test_rows_that_stand_in_another_set_are_found_exactly_and_nearly() -> None:
    train = search(*(sentence(number, 40) for number in range(50)))
    near = sentence(30, 40) + " and so on"
    evaluation = search(sentence(70, 40), sentence(20, 40), near)
    assert train.overlap(evaluation) == ([(20, 1)], [(30, 2)])


def test_text_without_spaces_is_searched_too() -> None:
    text = "".join(chr(0x4E00 + (number * number) % 900) for number in range(200))
    assert [group.rows for group in search(text, text[:150] + "火" + text[150:]).near()] == [[0, 1]]
