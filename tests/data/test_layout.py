"""Where tokens are, told by their lengths, against the tokenizer's own offsets."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from sartor.data.tokens.layout import TokenBytes, located
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import run

PARTS = [
    "a",
    " ",
    "  ",
    "\n",
    "é",
    "e\u0301",
    "😀",
    "<end>",
    "hello",
    " world",
    "日本",
    "\t",
    "\u2028",
    "ﬁ",
    "1",
    "\ud83d",
]


def byte_level(**keywords: Any) -> Tokenizer:
    """A byte-level tokenizer without merges but one, and a special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = [("h", "e"), ("Ġ", "w"), ("Ġ", "Ġ"), ("Ċ", "Ċ")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **keywords))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    return tokenizer


def texts(count: int = 300) -> list[str]:
    """Texts of awkward parts that UTF-8 can hold."""
    chance = random.Random(0)
    parts = [part for part in PARTS if not part.startswith("\ud83d")]
    return ["".join(chance.choices(parts, k=chance.randint(0, 20))) for _ in range(count)]


@pytest.mark.parametrize("form", [None, normalizers.NFC(), normalizers.NFKD()])
def test_places_are_those_of_the_tokenizers_offsets(form: Any) -> None:
    tokenizer = byte_level()
    if form is not None:
        tokenizer.normalizer = form
    token_bytes = TokenBytes.of(tokenizer)
    assert token_bytes is not None
    some = texts()
    encodings = tokenizer.encode_batch(some, add_special_tokens=False)
    laid = token_bytes.lay_out(some, [encoding.ids for encoding in encodings])
    assert sum(row is not None for row in laid) > len(some) / 10
    for text, encoding, row in zip(some, encodings, laid, strict=True):
        if row is not None:
            for character in range(len(text)):
                assert row.char_to_token(character) == encoding.char_to_token(character), (text, character)
            for token in range(len(row.ids)):
                assert row.token_to_chars(token) == encoding.token_to_chars(token), (text, token)
            assert row.char_to_token(len(text)) is None


def test_a_text_whose_bytes_are_exchanged_for_as_many_others_is_not_told() -> None:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    token_bytes = TokenBytes.of(tokenizer)
    assert token_bytes is not None
    text = "\u212b"  # ångström sign: NFC makes it å, of two bytes; with another character of one byte more they add up
    ids = tokenizer.encode("å!", add_special_tokens=False).ids
    assert len(ids) == len(text.encode())
    assert token_bytes.lay_out([text], [ids]) == [None]
    assert token_bytes.lay_out(["å!"], [ids]) != [None]


def test_tokens_that_take_spaces_beside_them_are_told_by_offsets() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<wide>", special=True, lstrip=True, rstrip=True)])
    token_bytes = TokenBytes.of(tokenizer)
    assert token_bytes is not None
    some = ["he <wide> he", "he<wide>he"]

    def encode(batch: Any) -> Any:
        encode = tokenizer.encode_batch if batch.needs_characters else tokenizer.encode_batch_fast
        return encode(list(batch.texts), add_special_tokens=False)

    encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
    laid = token_bytes.lay_out(some, [encoding.ids for encoding in encodings])
    assert [row is None for row in laid] == [True, False]
    found = run(located(some, token_bytes), encode)
    expected = tokenizer.encode_batch(some, add_special_tokens=False)
    for text, one, other in zip(some, found, expected, strict=True):
        assert [one.char_to_token(i) for i in range(len(text))] == [other.char_to_token(i) for i in range(len(text))]


def test_other_tokenizers_are_asked_for_offsets() -> None:
    unknown = Tokenizer(models.BPE(vocab={"a": 0, "?": 1}, merges=[], unk_token="?"))
    unknown.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert TokenBytes.of(unknown) is None
    assert TokenBytes.of(byte_level(end_of_word_suffix="</w>")) is None
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert TokenBytes.of(spaced) is None
    lower = byte_level()
    lower.normalizer = normalizers.Lowercase()
    assert TokenBytes.of(lower) is None
    metaspace = byte_level()
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    assert TokenBytes.of(metaspace) is None


def test_a_target_may_be_of_a_message_of_any_number() -> None:
    for number in (1, 255, 256, 70_000):
        rows = TokenRows.from_targets([[5, 6, 7], [8]], [[0, number, 0], [number]])
        assert rows.labels.tolist() == [-100, 6, -100, 8]
