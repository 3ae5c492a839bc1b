from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.chat.decode import TextDecoder, decode, hidden_tokens
from tests.chat.conftest import make_tokenizer

BYTE_LEVEL = make_tokenizer()


def make_sentencepiece_like() -> Any:
    """As Llama 2's and Mistral's: a space is part of the next token, the first one is stripped, the rest is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "▁▁", "é"]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


SENTENCEPIECE_LIKE = make_sentencepiece_like()


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = TextDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.end()]


@given(st.text(min_size=1))
def test_pieces_joined_are_the_text_and_no_piece_breaks_a_character(text: str) -> None:
    pieces = pieces_of(BYTE_LEVEL, BYTE_LEVEL(text)["input_ids"])
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, len(BYTE_LEVEL) - 1)))
def test_any_tokens_broken_characters_too_give_the_text_of_all_of_them(ids: list[int]) -> None:
    whole = decode(BYTE_LEVEL, ids, hidden_tokens(BYTE_LEVEL))
    assert "".join(pieces_of(BYTE_LEVEL, ids)) == whole


@given(st.text(alphabet="ab é😀漢"))
def test_leading_spaces_of_words_survive(text: str) -> None:
    ids = SENTENCEPIECE_LIKE(text)["input_ids"]
    assert "".join(pieces_of(SENTENCEPIECE_LIKE, ids)) == decode(SENTENCEPIECE_LIKE, ids, frozenset())


@given(st.lists(st.integers(257, 263)))
def test_leading_spaces_survive_any_order_of_tokens(ids: list[int]) -> None:
    assert "".join(pieces_of(SENTENCEPIECE_LIKE, ids)) == decode(SENTENCEPIECE_LIKE, ids, frozenset())


@given(st.text(alphabet="ab é😀漢", min_size=1))
def test_a_character_comes_with_its_last_byte_and_not_later(text: str) -> None:
    decoder = TextDecoder(BYTE_LEVEL)
    shown = ""
    for end, character in enumerate(text, 1):
        for token_id in BYTE_LEVEL(character)["input_ids"]:
            shown += decoder.push(token_id)
        assert shown == text[:end]


def test_an_incomplete_character_at_the_end_is_shown_as_such() -> None:
    ids = BYTE_LEVEL("ab😀")["input_ids"][:-1]
    assert pieces_of(BYTE_LEVEL, ids) == ["a", "b", "", "", "", "\ufffd"]


def test_control_tokens_are_hidden_and_marks_of_thought_are_not() -> None:
    ids = BYTE_LEVEL("<|im_start|>a<think>b<|im_end|>")["input_ids"]
    assert len(ids) == 5
    assert pieces_of(BYTE_LEVEL, ids) == ["", "a", "<think>", "b", "", ""]


@pytest.mark.parametrize("text", ["a ,b", "it 's", "a .", "  a"])
def test_spaces_are_not_tidied(text: str) -> None:
    assert "".join(pieces_of(BYTE_LEVEL, BYTE_LEVEL(text)["input_ids"])) == text
