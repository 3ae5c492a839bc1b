"""Every line of a file becomes a row or a named problem; what is not there is told with what is near it."""

import gzip
import json
import resource
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from sartor.data.encoding.encode import prepare
from sartor.data.reading.folders import split_of
from sartor.data.reading.sources import load, read
from sartor.data.reading.tables import WHERE_COLUMN
from sartor.errors import DataError, HubError
from sartor.records import DataSettings

ROWS = [{"text": "one"}, {"text": "two\nlines"}, {"text": "drei, größer"}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(path: Path) -> Path:
    return write(path, 'text\none\n"two\nlines"\n"drei, größer"\n')


def write_parquet(path: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def write_arrow(path: Path, open_ipc: Any) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as sink, open_ipc(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def write_folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    write(path / "a.jsonl", lines(ROWS[:1]))
    write(path / "b.json", json.dumps(ROWS[1:2]))
    write(path / "sub" / "c.jsonl.gz", gzip.compress(lines(ROWS[2:]).encode()))
    write(path / "README.md", "about")
    write(path / ".hidden.jsonl", "no")
    return path


def write_saved(path: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(path)
    return path


def write_saved_splits(path: Path) -> Path:
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(path)
    return path


WRITERS = {
    "a.jsonl": lambda path: write(path, lines(ROWS)),
    "a.ndjson": lambda path: write(path, "\n\n" + lines(ROWS).rstrip("\n")),
    "a.jsonl.gz": lambda path: write(path, gzip.compress(lines(ROWS).encode())),
    "mark.jsonl": lambda path: write(path, b"\xef\xbb\xbf" + lines(ROWS).encode()),
    "list.json": lambda path: write(path, json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: write(path, lines(ROWS)),
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "stream.arrow": lambda path: write_arrow(path, pyarrow.ipc.new_stream),
    "file.arrow": lambda path: write_arrow(path, pyarrow.ipc.new_file),
    "folder": write_folder,
    "saved": write_saved,
    "saved_splits": write_saved_splits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_same_rows_in_order(name: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[name](tmp_path / name))
    assert dataset.remove_columns(WHERE_COLUMN).to_list() == ROWS


def test_rows_know_their_line_after_filtering_and_shuffling(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n" + lines(ROWS))
    dataset = load(str(path)).filter(lambda row: row["text"] != "one").shuffle(seed=0)
    places = {row["text"]: row[WHERE_COLUMN] for row in dataset}
    assert places == {"two\nlines": "a.jsonl, line 3", "drei, größer": "a.jsonl, line 4"}


def test_a_csv_row_of_several_lines_is_placed_at_its_first(tmp_path: Path) -> None:
    assert load(write_csv(tmp_path / "a.csv"))[WHERE_COLUMN][:] == ["a.csv, line 2", "a.csv, line 3", "a.csv, line 5"]


def test_csv_values_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "question,answer\nsum?,072\n")
    assert load(path)[0]["answer"] == "072"


def told(path: Path, tokenizer: Any) -> str:
    """The error that a file of bad rows leads to."""
    with pytest.raises(DataError) as caught:
        prepare(load(path), tokenizer, DataSettings())
    return str(caught.value)


def test_all_bad_lines_are_in_one_error_with_the_first_of_each_kind(tokenizer: Any, tmp_path: Path) -> None:
    good = json.dumps({"text": "fine"})
    content = "\n".join([good, '{"text": "ha', good, "[1, 2]", '{"text" 5}', "7", good, '{"text": "half']).encode()
    path = write(tmp_path / "bad.jsonl", content.replace(b"7\n", b'{"text": "\xff"}\n'))
    message = told(path, tokenizer)
    assert "5 of 8 rows cannot be used" in message
    assert "not JSON (2 times, first in bad.jsonl, line 2)" in message
    assert '{"text": "ha' in message
    assert "not an object (bad.jsonl, line 4): it is a list" in message
    assert "not UTF-8 (bad.jsonl, line 6): byte 11" in message
    assert "the last line ends in the middle (bad.jsonl, line 8)" in message


def test_columns_of_any_row_are_kept_and_mixed_types_stay_as_they_are() -> None:
    dataset = load([{"text": "a"}, {"text": 5, "extra": [1]}])
    assert dataset.to_list() == [{"text": "a", "extra": None}, {"text": 5, "extra": [1]}]


def test_objects_do_not_get_keys_that_only_other_rows_have() -> None:
    rows = [{"tools": [{"x": 1}]}, {"tools": [{"y": {"z": 2}}]}]
    assert load(rows).to_list() == rows


def test_a_row_of_a_list_that_is_no_dict_is_named(tokenizer: Any) -> None:
    dataset = load([{"text": "a"}, "b"], name="eval")
    with pytest.raises(DataError, match=r"1 of 2 rows.*\n.*not a dict \(eval data, row 1\): it is a str"):
        prepare(dataset, tokenizer, DataSettings(), name="eval")
    assert prepare(dataset, tokenizer, DataSettings(bad_rows="skip"), name="eval").summary.num_skipped_rows == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": [{"text": "a"}]}', r"one object, not a list.*under 'data'"),
        ('[{"text": "a"},\n {"text" "b"}]', r"line 2: not JSON: Expecting ':' delimiter at column 10"),
        ("", r"line 1: not JSON"),
        ("5", r"holds a number"),
    ],
)
def test_a_json_file_that_is_no_list_of_objects_is_explained(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"(?s){said}"):
        load(write(tmp_path / "list.json", content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,a\n1,2\n", r"line 1: the header has 'a' more than once"),
        ('a\n"open\n', r"not CSV: unexpected end of data"),
        ("a\n", "no rows"),
    ],
)
def test_a_broken_csv_file_names_its_line(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"(?s){said}"):
        load(write(tmp_path / "a.csv", content))


def test_entries_of_lists_and_rows_of_tables_that_are_none_are_named(tokenizer: Any, tmp_path: Path) -> None:
    listed = told(write(tmp_path / "list.json", '[1, {"text": "a"}]'), tokenizer)
    assert "1 of 2 rows cannot be used" in listed
    assert "not an object (list.json, row 0): it is a number" in listed
    ragged = told(write(tmp_path / "a.csv", "text,b\n1,2\n1,2,3\n"), tokenizer)
    assert "wrong number of values (a.csv, line 3): it has 3 values; the header has 2" in ragged
    undecodable = told(write(tmp_path / "b.csv", b'text,b\n1,2\n"\n",\xff\n1,2\n'), tokenizer)
    assert "1 of 3 rows" in undecodable
    assert "not UTF-8 (b.csv, line 3)" in undecodable


def test_files_that_are_damaged_or_empty_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Parquet file"):
        load(write(tmp_path / "a.parquet", "no"))
    with pytest.raises(DataError, match="cannot be read"):
        load(write(tmp_path / "a.jsonl.gz", gzip.compress(lines(ROWS).encode())[:-9]))
    with pytest.raises(DataError, match="no kind that can be read"):
        load(write(tmp_path / "a.txt", "text"))
    with pytest.raises(DataError, match="has no rows"):
        load(write(tmp_path / "a.jsonl", "\n"))


def test_a_missing_file_is_told_with_what_is_near_it(tmp_path: Path) -> None:
    write(tmp_path / "training.jsonl", lines(ROWS))
    write(tmp_path / "other.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"Did you mean .*training\.jsonl\?"):
        load(tmp_path / "trainin.jsonl")
    with pytest.raises(DataError, match=r"its data files: other\.csv, training\.jsonl"):
        load(str(tmp_path / "zzz.parquet"))
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        load(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(DataError, match=r"several kinds \(1 CSV, 1 JSON\).*one of its files.*: other\.csv, training"):
        load(tmp_path)


def test_splits_are_chosen_by_name_or_listed() -> None:
    one, two = Dataset.from_list(ROWS[:1]), Dataset.from_list(ROWS[1:])
    assert load(DatasetDict(test=one)) is one
    assert load(DatasetDict(train=one, test=two)) is one
    assert load(DatasetDict(train=one, test=two), split="test") is two
    with pytest.raises(DataError, match=r"splits 'a', 'b'\. Say which one to use as eval data"):
        load(DatasetDict(a=one, b=two), name="eval")
    with pytest.raises(DataError, match=r"no split 'c'\. The data set has 'a', 'b'"):
        load(DatasetDict(a=one, b=two), split="c")


def test_the_files_of_a_folder_are_read_by_name_and_the_rest_is_said(tmp_path: Path) -> None:
    source = read(write_folder(tmp_path / "chats"))
    assert source.dataset[WHERE_COLUMN][:] == ["a.jsonl, line 1", "b.json, row 0", "sub/c.jsonl.gz, line 1"]
    said = " ".join(source.notes)
    assert "3 files of the folder" in said
    assert "1 hidden files of it are not read" in said
    assert "1 other files of it are not read: README.md" in said
    named = read(tmp_path / "chats", long_names=True).dataset[WHERE_COLUMN][0]
    assert named == f"{tmp_path}/chats/a.jsonl, line 1"


@pytest.mark.parametrize("layout", ["{split}.jsonl", "{split}/a.jsonl", "data/my_{split}-00000-of-00001.jsonl"])
def test_splits_are_told_by_the_names_of_files_and_folders(layout: str, tmp_path: Path) -> None:
    for split, row in zip(("train", "valid", "test"), ROWS, strict=True):
        path = tmp_path / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lines([row]))
    write(tmp_path / "more.jsonl", lines(ROWS))
    source = read(tmp_path)
    assert source.dataset["text"][:] == ["one"]
    assert "The split 'train' of the folder" in source.notes[0]
    assert "it has 'train', 'validation', 'test'" in source.notes[0]
    assert "other files of it are not read: more.jsonl" in source.notes[-1]
    assert load(tmp_path, name="eval")["text"][:] == ["two\nlines"]
    assert load(tmp_path, split="test", name="eval")["text"][:] == ["drei, größer"]
    with pytest.raises(DataError, match="no split 'dev'"):
        load(tmp_path, split="dev")


def test_words_that_contain_a_split_are_none() -> None:
    assert split_of(Path("trainer/contest.jsonl")) is None
    assert split_of(Path("test/train_1.jsonl")) == "train"
    assert split_of(Path("train/data.jsonl")) == "train"


def test_a_saved_data_set_says_its_split_and_numbers_its_rows(tmp_path: Path) -> None:
    source = read(write_saved_splits(tmp_path / "saved"))
    assert "The split 'train' of the data set saved in" in source.notes[0]
    assert source.dataset[WHERE_COLUMN][1] == "saved, row 1"
    (tmp_path / "saved" / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "saved")


def test_parquet_files_of_a_folder_whose_columns_do_not_fit_are_named(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list([{"more": 1}]).to_parquet(tmp_path / "b.parquet")
    assert load(tmp_path)["more"][:] == [None, None, None, 1]
    Dataset.from_list([{"text": 1}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet and .*b\.parquet do not fit in one table"):
        load(tmp_path)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "no")
    with pytest.raises(DataError, match=r"has no file with \.jsonl.*It has notes\.txt"):
        load(tmp_path)


def test_the_revision_of_a_hub_data_set_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(*given: object, **options: object) -> DatasetDict:
        asked.append((given, options))
        return DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1]))

    monkeypatch.setattr("datasets.load_dataset", fake)
    source = read("someone/some", config="small", revision="v1", split="test")
    assert asked == [(("someone/some", "small"), {"revision": "v1"})]
    assert len(source.dataset) == 1
    assert "The split 'test' of the Hub's data set 'someone/some'" in source.notes[0]
    with pytest.raises(DataError, match="applies to data sets of the Hub only"):
        read([{"text": "a"}], revision="v1")


def test_data_sets_in_memory_are_taken_as_they_are() -> None:
    dataset = Dataset.from_list(ROWS)
    assert load(dataset) is dataset
    stream = dataset.to_iterable_dataset()
    assert load(stream) is stream
    with pytest.raises(DataError, match=r"an? int is no source of rows"):
        load(5)


def test_a_file_has_no_splits_or_configurations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(ROWS))
    assert len(load(path, split="train")) == 3
    with pytest.raises(DataError, match="split='test' does not apply to the file"):
        load(path, split="test")
    with pytest.raises(DataError, match="config='main' does not apply to the file"):
        load(path, config="main")


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(HubError, match=r"'someone/some' cannot be fetched: no route to host\. Check the network"):
        load("someone/some")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_folder_may_have_more_files_than_may_be_open(suffix: str, tmp_path: Path) -> None:
    for number in range(60):
        table = pyarrow.table({"text": [f"row {number}"]})
        if suffix == "parquet":
            pyarrow.parquet.write_table(table, tmp_path / f"{number:02}.parquet")
        else:
            with pyarrow.ipc.new_file(tmp_path / f"{number:02}.arrow", table.schema) as writer:
                writer.write_table(table)
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else most - 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 30, hard))
    try:
        rows = load(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    assert rows["text"][:] == [f"row {number}" for number in range(60)]
