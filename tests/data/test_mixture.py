"""Sources of any format are mixed by their weights, the same way each time; rows keep their file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.mixture import is_mixture, parse_source, prepare_mixture, read_parts
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, PreparedData, RowFormat
from tests.data.conftest import make_small_tokenizer

TOKENIZER = make_small_tokenizer()
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def numbered(first: int, count: int) -> list[dict[str, Any]]:
    """Tokenized rows, each of one token that names it."""
    return [{"input_ids": [first + number], "labels": [first + number]} for number in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed(pairs: list[tuple[Any, Any]], tokenizer: Any, **options: Any) -> PreparedData:
    def prepare_one(dataset: Any, how: DataSettings, name: str) -> PreparedData:
        return prepare(dataset, tokenizer, how, name=name, pack=pack)

    return prepare_mixture(read_parts(pairs), DataSettings(**options), "train", prepare_one)


def taken(prepared: PreparedData) -> list[int]:
    return [ids[0] for ids in prepared.dataset["input_ids"][:]]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.jsonl:0.7", ("a.jsonl", 0.7)),
        ("owner/name:2", ("owner/name", 2.0)),
        ("a.jsonl:.5", ("a.jsonl", 0.5)),
        ("a:b.jsonl:1e-2", ("a:b.jsonl", 0.01)),
        ("a.jsonl:-1", ("a.jsonl", -1.0)),
        (r"C:\x.jsonl", (r"C:\x.jsonl", None)),
        (r"C:\x.jsonl:3", (r"C:\x.jsonl", 3.0)),
        ("owner/name", ("owner/name", None)),
        ("a.jsonl:", ("a.jsonl:", None)),
        ("hf://owner:name", ("hf://owner:name", None)),
    ],
)
def test_a_weight_is_the_number_behind_the_last_colon(text: str, parsed: tuple[str, float | None]) -> None:
    assert parse_source(text) == parsed


def test_a_file_that_is_called_like_a_weighted_source_is_that_file(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl:2", numbered(0, 1)))
    assert parse_source(path) == (path, None)


def test_lists_of_rows_are_no_mixtures() -> None:
    assert is_mixture([("a.jsonl", 0.7), (Dataset.from_list(numbered(0, 1)), None)])
    for other in ([], [{"text": "a"}], "ab", ["ab"], Dataset.from_list(numbered(0, 2)), [("a", 1, 2)]):
        assert not is_mixture(other)


def test_weights_are_shares_and_the_seed_decides(tokenizer: Any) -> None:
    pairs = [(Dataset.from_list(numbered(0, 1000)), 0.7), (Dataset.from_list(numbered(10_000, 1000)), 0.3)]
    prepared = mixed(pairs, tokenizer)
    numbers = taken(prepared)
    share = sum(number < 10_000 for number in numbers) / len(numbers)
    assert abs(share - 0.7) < 0.03  # 1,430 draws: a standard deviation of 0.012
    assert numbers == taken(mixed(pairs, tokenizer))
    assert numbers != taken(mixed(pairs, tokenizer, seed=43))
    assert [number for number in numbers if number < 10_000] == list(range(1000))
    assert sum(prepared.summary.source_rows.values()) == len(numbers) == prepared.summary.num_examples
    assert any("source 2 (weight 0.3): input_ids" in note and "are not used" in note for note in prepared.summary.notes)


@pytest.mark.parametrize(
    ("until", "times"),
    [
        ("first_exhausted", (0, 1)),
        ("all_exhausted", (1, 99)),
        ("all_exhausted_without_replacement", (1, 1)),
    ],
)
def test_where_a_mixture_ends_is_a_named_option(until: str, times: tuple[int, int], tokenizer: Any) -> None:
    pairs = [(Dataset.from_list(numbered(0, 40)), 1), (Dataset.from_list(numbered(1000, 5)), 1)]
    prepared = mixed(pairs, tokenizer, mix_until=until)
    numbers = taken(prepared)
    counts = [numbers.count(number) for number in [*range(40), *range(1000, 1005)]]
    assert min(counts) == times[0]
    assert max(counts) <= times[1]
    assert any(note.startswith(f"mix_until={until}") for note in prepared.summary.notes)
    if until == "all_exhausted":
        repeated = sum(counts[40:]) - 5
        assert any(f"{repeated} of them repeated" in note for note in prepared.summary.notes)


def test_sources_without_weights_follow_one_another(tokenizer: Any) -> None:
    pairs = [(Dataset.from_list(numbered(0, 3)), None), (Dataset.from_list(numbered(10, 2)), None)]
    assert taken(mixed(pairs, tokenizer)) == [0, 1, 2, 10, 11]


def test_sources_of_different_formats_keep_their_own_targets(tokenizer: Any, tmp_path: Path) -> None:
    chats = write(tmp_path / "chats.jsonl", [{"messages": HI}] * 3)
    Dataset.from_list([{"prompt": "The moon", "completion": " sighs."}] * 3).to_parquet(tmp_path / "pairs.parquet")
    texts = write(tmp_path / "texts.jsonl", [{"text": "Rubber boots."}] * 3)
    pairs = [(tmp_path / "pairs.parquet", 1), (texts, 1), (chats, 1)]
    prepared = mixed(pairs, tokenizer, mix_until="all_exhausted_without_replacement")
    assert prepared.summary.format is RowFormat.SEVERAL
    assert prepared.summary.source_rows == dict.fromkeys(("chats.jsonl", "pairs.parquet", "texts.jsonl"), 3)
    for number, row in enumerate(prepared.dataset):
        trained = tokenizer.decode([label for label in row["labels"] if label != -100])
        where = prepared.places.where(number)
        expected = {"chats": "<|im_start|>user", "pairs": " sighs.<|im_end|>", "texts": "Rubber boots.<|im_end|>"}
        assert trained.startswith(expected[where.split(".")[0]]), where
    assert prepared.dataset.column_names == ["input_ids", "labels"]


def test_files_of_one_name_are_known_by_their_paths(tokenizer: Any, tmp_path: Path) -> None:
    one, two = (write(tmp_path / folder / "train.jsonl", [{"text": "a"}]) for folder in ("x", "y"))
    prepared = mixed([(one, None), (two, None)], tokenizer)
    assert [prepared.places.where(number) for number in (0, 1)] == [f"{one}, line 1", f"{two}, line 1"]


@pytest.mark.parametrize("options", [{"packing": True, "max_length": 4}, {"shuffle_dataset": True}])
def test_packing_and_shuffling_come_after_mixing_and_keep_places(options: dict[str, Any], tokenizer: Any) -> None:
    pairs = [(Dataset.from_list(numbered(0, 50)), 1), (Dataset.from_list(numbered(1000, 50)), 1)]
    plain = mixed(pairs, tokenizer)
    prepared = mixed(pairs, tokenizer, **options)
    flat = [token for ids in prepared.dataset["input_ids"][:] for token in ids]
    assert sorted(flat) == sorted(taken(plain))
    for number, ids in enumerate(prepared.dataset["input_ids"][:]):
        rows = {(source, row) for source, _, row in prepared.places.rows_of(number)}
        assert rows == {(f"train (source {1 + token // 1000}) data", token % 1000) for token in ids}


def test_what_packing_cuts_of_a_mixture_is_counted_once(tokenizer: Any) -> None:
    long = Dataset.from_list([{"input_ids": list(range(9)), "labels": list(range(9))}])
    prepared = mixed([(long, None), (long, None)], tokenizer, packing=True, max_length=6)
    assert (prepared.summary.num_truncated_rows, prepared.summary.num_truncated_tokens) == (2, 6)
    unpacked = mixed([(long, None), (long, None)], tokenizer, max_length=6)
    assert (unpacked.summary.num_truncated_rows, unpacked.summary.num_truncated_tokens) == (2, 6)


def test_bad_rows_of_all_sources_are_in_one_error_or_skipped_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"text": "a"}, {"text": ""}])
    two = write(tmp_path / "two.jsonl", [{"messages": HI}, {"messages": []}, {"messages": HI}])
    with pytest.raises(DataError, match=r"(?s)empty text \(one\.jsonl, line 2\).*no messages \(two\.jsonl, line 2\)"):
        mixed([(one, None), (two, None)], tokenizer)
    prepared = mixed([(one, None), (two, None)], tokenizer, bad_rows="skip")
    assert (prepared.summary.num_rows, prepared.summary.num_skipped_rows, prepared.summary.num_examples) == (5, 2, 3)
    assert prepared.summary.skipped_kinds == {"empty text": 1, "no messages": 1}
    assert prepared.places.where(2) == "two.jsonl, line 3"


@pytest.mark.parametrize("weights", [(0.5, None), (0, 1), (-1, 1), (float("nan"), 1), (True, 1), ("2", 1)])
def test_weights_that_are_none_are_refused(weights: tuple[Any, Any], tokenizer: Any) -> None:
    rows = Dataset.from_list(numbered(0, 1))
    with pytest.raises(ConfigurationError, match="weight"):
        mixed([(rows, weights[0]), (rows, weights[1])], tokenizer)


def test_all_missing_sources_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no file .*one\.jsonl.*no file .*two\.jsonl"):
        read_parts([(tmp_path / "one.jsonl", 1), (tmp_path / "two.jsonl", 1)])


def test_streams_are_mixed_as_they_are_read(tokenizer: Any) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"text": "a"}] * 20))
    prepared = mixed([(stream, 1), (Dataset.from_list([{"text": "b"}] * 20), 1)], tokenizer)
    texts = [tokenizer.decode(row["input_ids"]) for row in prepared.dataset]
    assert {"a<|endoftext|>", "b<|endoftext|>"} == set(texts)
    assert texts == [tokenizer.decode(row["input_ids"]) for row in prepared.dataset]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    until=st.sampled_from(["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]),
)
def test_every_example_of_a_mixture_knows_its_row(sizes: list[int], seed: int, until: str) -> None:
    pairs = [(Dataset.from_list(numbered(100 * part, size)), 1.0) for part, size in enumerate(sizes)]
    prepared = mixed(pairs, TOKENIZER, seed=seed, mix_until=until)
    numbers = taken(prepared)
    for number, token in enumerate(numbers):
        assert prepared.places.where(number) == f"train (source {1 + token // 100}) data, row {token % 100}"
    assert sum(prepared.summary.source_rows.values()) == len(numbers) > 0
