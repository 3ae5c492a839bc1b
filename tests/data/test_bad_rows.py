"""Bad rows of every kind are named in one error with their lines, or skipped and counted; the others keep theirs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.parts import encoding_part
from sartor.data.inspection.prepared import describe
from sartor.data.reading.places import Places
from sartor.data.reading.sources import load
from sartor.data.rows.formats import Reading
from sartor.data.tokens.tokenizing import run
from sartor.errors import DataError, SartorWarning
from sartor.records import DataSettings, PreparedData, RowFormat
from tests.data.conftest import make_small_tokenizer

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
STRICT = """{%- for message in messages %}
{%- if loop.index0 and message.role == messages[loop.index0 - 1].role %}{{ raise_exception('roles must alternate') }}
{%- endif %}{{- message.role + ': ' + message.content + eos_token }}{% endfor %}"""
GOOD = json.dumps({"messages": HI}).encode()
PLANTED: list[tuple[str, bytes]] = [
    ("not UTF-8", b'{"messages": "\xff"}'),
    ("not JSON", b'{"messages": [}'),
    ("not an object", b'["messages"]'),
    ("half a character", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'),
    ("missing value", b'{"mesages": []}'),
    ("wrong type", b'{"messages": "Hi"}'),
    ("unknown role", b'{"messages": [{"role": "robot", "content": "Hi"}]}'),
    ("empty assistant message", json.dumps({"messages": [HI[0], {"role": "assistant", "content": ""}]}).encode()),
    ("refused by the chat template", json.dumps({"messages": [HI[0], HI[0], HI[1]]}).encode()),
    ("another format", b'{"text": "The moon."}'),
]
LAST = ("the last line ends in the middle", GOOD[:-9])


def planted(path: Path) -> dict[str, int]:
    """Write a file of 1,000 lines with ten kinds of bad ones and half a line at its end; the line of each kind."""
    lines = [GOOD] * 1000
    places = random.Random(0).sample(range(999), len(PLANTED))
    for place, (_, line) in zip(places, PLANTED, strict=True):
        lines[place] = line
    lines[999] = LAST[1]
    path.write_bytes(b"\n".join(lines))
    return {kind: place + 1 for place, (kind, _) in zip(places, PLANTED, strict=True)} | {LAST[0]: 1000}


def strict_tokenizer() -> Any:
    tokenizer = make_small_tokenizer()
    tokenizer.chat_template = STRICT
    return tokenizer


def test_every_kind_of_bad_row_in_a_thousand_is_named_with_its_line(tmp_path: Path) -> None:
    lines = planted(tmp_path / "train.jsonl")
    with pytest.raises(DataError) as caught:
        prepare(load(tmp_path / "train.jsonl"), strict_tokenizer(), DataSettings())
    message = str(caught.value)
    assert "11 of 1,000 rows cannot be used" in message
    for kind, line in lines.items():
        assert f"{kind} (train.jsonl, line {line})" in message
    for content in ('"robot"', "[}", "The moon.", "mesages"):
        assert content in message


def test_skipped_rows_are_counted_and_the_others_keep_their_lines(tmp_path: Path) -> None:
    lines = planted(tmp_path / "train.jsonl")
    prepared = prepare(load(tmp_path / "train.jsonl"), strict_tokenizer(), DataSettings(bad_rows="skip"))
    summary = prepared.summary
    assert (summary.num_rows, summary.num_skipped_rows, summary.num_examples) == (1000, 11, 989)
    assert summary.skipped_kinds == dict.fromkeys(lines, 1)
    good = [line for line in range(1, 1001) if line not in lines.values()]
    assert [prepared.places.where(number) for number in range(989)] == [f"train.jsonl, line {line}" for line in good]
    for kind, line in lines.items():
        assert any(note.startswith(f"skipped: {kind} (train.jsonl, line {line})") for note in summary.notes)
    assert "skipped: 11 rows that cannot be used" in describe(summary)
    assert prepared.dataset.column_names == ["input_ids", "labels"]


def test_a_count_of_what_was_done_leaves_out_skipped_rows() -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": "b<|endoftext|>"}, {"text": "c"}]
    encoder = Encoder(TOKENIZER, Reading(RowFormat.TEXT, "text"), DataSettings())
    part = run(encoding_part(encoder, rows, [f"a, row {number}" for number in range(4)]), encoder.tokenize)
    assert part.places.first_rows() == ["a, row 0", "a, row 2", "a, row 3"]
    assert (part.tally["rows"], part.tally["end-of-text tokens appended"]) == (3, 2)


def test_rows_that_only_encoding_finds_are_skipped_too() -> None:
    good, bad = ({"prompt": HI[:1], "completion": [{"role": role, "content": "b"}]} for role in ("assistant", "user"))
    options = DataSettings(bad_rows="skip", assistant_only_loss=True)
    prepared = prepare(load([good, bad, good]), make_small_tokenizer(), options)
    assert prepared.summary.num_examples == 2
    assert sum(prepared.summary.skipped_kinds.values()) == 1
    assert [prepared.places.where(number) for number in (0, 1)] == ["train data, row 0", "train data, row 2"]


def test_where_no_row_is_left_it_is_an_error_all_the_same() -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        prepare(load([{"text": ""}, {"text": None}]), make_small_tokenizer(), DataSettings(bad_rows="skip"))


def test_files_without_a_readable_row_name_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n[]\n")
    with pytest.raises(
        DataError, match=r"(?s)2 of 2 rows.*not JSON \(a\.jsonl, line 1\).*an object \(a\.jsonl, line 2\)"
    ):
        prepare(load(tmp_path / "a.jsonl"), make_small_tokenizer(), DataSettings(bad_rows="skip"))


def test_a_stream_warns_of_the_first_of_each_kind_and_goes_on() -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}, {"text": ""}, {"text": None}, {"text": "c"}]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    prepared = prepare(stream, make_small_tokenizer(), DataSettings(bad_rows="skip"))
    with pytest.warns(SartorWarning) as caught:
        assert len(list(prepared.dataset)) == 3
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    assert "empty text (2 times, first in train data, row 1)" in said[0]
    assert "missing value (train data, row 4)" in said[1]


@settings(max_examples=40, deadline=None)
@given(
    is_bad=st.lists(st.sampled_from(["", "not JSON", "empty text"]), min_size=1, max_size=30).filter(lambda b: "" in b)
)
def test_any_mix_of_bad_lines_leaves_the_good_ones_with_their_numbers(is_bad: list[str], tmp_path_factory: Any) -> None:
    lines = {"": '{"text": "a"}', "not JSON": "{", "empty text": '{"text": ""}'}
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(lines[kind] + "\n" for kind in is_bad))
    prepared = prepare(load(path), TOKENIZER, DataSettings(bad_rows="skip"))
    good = [number for number, kind in enumerate(is_bad, 1) if not kind]
    assert [row for number in range(len(good)) for _, _, row in prepared.places.rows_of(number)] == good
    bad = [kind for kind in is_bad if kind]
    assert prepared.summary.skipped_kinds == {kind: bad.count(kind) for kind in bad}


TOKENIZER = make_small_tokenizer()
FORMATS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": HI}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}],
    "prompt and completion": [{"prompt": "Hi", "completion": " Yo"}],
    "conversational prompt and completion": [{"prompt": HI[:1], "completion": HI[1:]}],
    "alpaca": [{"instruction": "Hi", "input": "", "output": "Yo"}],
    "text": [{"text": "Hi Yo"}],
    "tokenized": [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}],
}


def write_arrow(path: Path, rows: list[dict[str, Any]], open_ipc: Any = pyarrow.ipc.new_stream) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, open_ipc(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def write_with(write: Callable[[Dataset], Any], path: Path, rows: list[dict[str, Any]]) -> Path:
    write(Dataset.from_list(rows))
    return path


SOURCES: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "jsonl": lambda path, rows: write_text(path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
    "json": lambda path, rows: write_text(path / "a.json", json.dumps(rows)),
    "parquet": lambda path, rows: write_with(lambda d: d.to_parquet(path / "a.parquet"), path / "a.parquet", rows),
    "arrow stream": lambda path, rows: write_arrow(path / "a.arrow", rows),
    "arrow file": lambda path, rows: write_arrow(path / "a.arrow", rows, pyarrow.ipc.new_file),
    "folder": lambda path, rows: write_text(path / "in" / "a.jsonl", "".join(map(json.dumps, rows)) + "\n").parent,
    "saved": lambda path, rows: write_with(lambda d: d.save_to_disk(path / "saved"), path / "saved", rows),
    "list": lambda path, rows: rows,
    "Dataset": lambda path, rows: Dataset.from_list(rows),
    "IterableDataset": lambda path, rows: IterableDataset.from_generator(lambda: iter(rows)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_source_gives_the_same_examples_for_every_format(source: str, kind: str, tmp_path: Path) -> None:
    rows = FORMATS[kind]
    plain: PreparedData = prepare(load(rows), make_small_tokenizer(), DataSettings())
    prepared = prepare(load(SOURCES[source](tmp_path, rows)), make_small_tokenizer(), DataSettings())
    columns = ("input_ids", "labels")
    assert [{name: row[name] for name in columns} for row in prepared.dataset] == plain.dataset.to_list()
    assert prepared.summary.format is plain.summary.format


def test_csv_gives_the_same_examples_for_formats_of_text(tmp_path: Path) -> None:
    for kind, text in (("text", "text\nHi Yo\n"), ("prompt and completion", 'prompt,completion\nHi," Yo"\n')):
        path = write_text(tmp_path / "a.csv", text)
        plain = prepare(load(FORMATS[kind]), make_small_tokenizer(), DataSettings())
        assert prepare(load(path), make_small_tokenizer(), DataSettings()).dataset[:] == plain.dataset[:]


@pytest.mark.parametrize("options", [{}, {"shuffle_dataset": True}, {"packing": True, "max_length": 6}])
def test_places_follow_examples_through_dropping_shuffling_and_packing(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"input_ids": [n] * (1 + n % 3), "labels": [n if n % 5 else -100] * (1 + n % 3)} for n in range(1, 60)]
    path = write_text(tmp_path / "a.jsonl", "\n" + "".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(load(path), TOKENIZER, DataSettings(**{"max_length": 4, **options}), pack=pack)
    for number, ids in enumerate(prepared.dataset["input_ids"][:]):
        assert {row for _, _, row in prepared.places.rows_of(number)} == {token + 1 for token in ids}
    assert len(prepared.places) == len(prepared.dataset)


def test_places_are_told_in_words() -> None:
    texts = [f"a.jsonl, line {number}" for number in range(1, 7)] + ["x, y, row 0"]
    places = Places.of_texts(texts)
    assert [places.where(number) for number in range(7)] == texts
    lengths = pack([1] * 7, 7, "bfd")
    assert places.packed(lengths).where(0) == "a.jsonl, lines 1, 2, 3, 4 and 3 more"
    assert places.counts() == {"a.jsonl": 6, "x, y": 1}
    with pytest.raises(IndexError):
        places.where(7)
    both = Places.concatenate([places, Places.of_texts(["x, y, row 5"]).take([0])])
    assert both.where(7) == "x, y, row 5"
    assert both.first_rows() == [*texts, "x, y, row 5"]
