"""Each token's own text, as it reads in its place; nothing of it commands a terminal."""

from typing import Any

import pytest

from sartor.data.inspection.sample import sample_of, token_texts


@pytest.mark.parametrize(
    "text", ["Sigh. größer 漢字 boots\n\n two  spaces", "<|im_start|>user\nHi<|im_end|>", "👩‍👩‍👧 é", ""]
)
def test_texts_of_tokens_join_to_the_whole_text(text: str, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_character_of_several_tokens_stands_with_its_last(tokenizer: Any) -> None:
    ids = tokenizer("漢", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert token_texts(ids, tokenizer) == [""] * (len(ids) - 1) + ["漢"]


def test_bytes_that_are_no_character_do_not_swallow_what_follows(tokenizer: Any) -> None:
    byte = tokenizer("漢", add_special_tokens=False)["input_ids"][0]
    ids = [byte] * 9 + tokenizer("boots", add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(ids, tokenizer)).endswith("boots")


@pytest.mark.parametrize(("mode", "cut"), [("keep_start", [0, 0, 0, 1, 1]), ("keep_end", [1, 1, 0, 0, 0])])
def test_tokens_that_max_length_cuts_are_told(mode: str, cut: list[int], tokenizer: Any) -> None:
    ids = tokenizer("abcde", add_special_tokens=False)["input_ids"][:5]
    ids = (ids * 5)[:5]
    sample = sample_of("a, row 0", ids, [-100, *ids[1:]], tokenizer, max_length=3, mode=mode)
    assert [int(token.is_cut) for token in sample.tokens] == cut
    assert [token.is_target for token in sample.tokens] == [False, True, True, True, True]
    assert (sample.num_tokens, sample.num_targets) == (5, 4)


def test_of_a_long_row_the_beginning_is_kept_and_the_whole_counted(tokenizer: Any) -> None:
    sample = sample_of("a, row 0", [5] * 50, [5] * 50, tokenizer, max_length=None, mode="keep_start", at_most=20)
    assert (len(sample.tokens), sample.num_tokens, sample.num_targets) == (20, 50, 49)
