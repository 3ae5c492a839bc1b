"""Rows of files that are too large for memory come from a file on disk, and are the rows that memory would have."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor.data import entries
from sartor.data.encoding.encode import prepare
from sartor.data.reading import sources, tables
from sartor.errors import DataError, SartorWarning
from sartor.records import DataSettings
from tests.data.conftest import make_small_tokenizer

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "So. " * number}]}
    for number in range(1, 60)
]
ODD: list[Any] = [{"text": "a", "n": 1}, {"text": "72"}, {"n": "x", "text": "b"}, {"text": {"a": 1}}, {"text": None}]


@pytest.fixture
def all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "LARGE_BYTES", 0)
    monkeypatch.setattr(tables, "CHARACTERS_PER_WRITTEN_CHUNK", 700)


def lines(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path, batch_size=10)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(rows).encode()))
    elif path.suffix == ".csv":
        path.write_text("prompt,completion\n" + "".join(f"a{number},{number}\n" for number in range(50)))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines(rows) + "{broken\n")
    return path


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.jsonl", ROWS),
        ("a.jsonl", ODD * 5),
        ("a.jsonl", [*ROWS, *ODD]),
        ("a.jsonl.gz", ROWS),
        ("a.json", ROWS),
        ("a.csv", []),
        ("a.parquet", ROWS),
    ],
)
def test_rows_columns_and_places_are_those_of_memory(
    name: str, rows: list[Any], tmp_path: Path, all_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name, rows)
    large = sources.load(path, data_cache=str(tmp_path / "cache"))
    monkeypatch.setattr(entries, "LARGE_BYTES", 1 << 40)
    small = sources.load(path)
    assert large.cache_files
    assert not small.cache_files
    assert large.features == small.features
    assert large[:] == small[:]


def test_files_of_a_folder_with_different_columns_are_one_table(tmp_path: Path, all_is_large: None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.parquet", [{"text": "a"}])
    write(folder / "b.parquet", [{"n": 1, "text": "b"}, {"n": 2, "text": "c"}])
    rows = sources.load(folder, data_cache=str(tmp_path / "cache"))
    assert rows[:] == {
        "text": ["a", "b", "c"],
        "n": [None, 1, 2],
        tables.WHERE_COLUMN: ["a.parquet, row 0", "b.parquet, row 0", "b.parquet, row 1"],
    }


def test_they_are_read_once_and_again_when_they_change_or_are_damaged(tmp_path: Path, all_is_large: None) -> None:
    path, cache = write(tmp_path / "a.jsonl", ROWS), tmp_path / "cache"

    def found() -> Path:
        return Path(sources.load(path, data_cache=str(cache)).cache_files[0]["filename"])

    first = found()
    written = first.stat().st_mtime_ns
    assert found() == first
    assert first.stat().st_mtime_ns == written
    content = path.read_text()
    path.write_text(content.replace("Why 7?", "Who 7?"))
    assert found() != first
    path.write_text(content)
    first.write_bytes(first.read_bytes().replace(b"Why 7?", b"Who 7?"))
    with pytest.warns(SartorWarning, match="damaged"):
        assert found() == first
    assert b"Who 7?" not in first.read_bytes()


def test_without_a_cache_they_are_in_a_temporary_folder_for_as_long_as_they_are_used(
    tmp_path: Path, all_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write(tmp_path / "a.parquet", ROWS)

    def folders() -> list[str]:
        return sorted(entry.name.rpartition("-")[0] for entry in (tmp_path / "temporary").iterdir())

    rows = sources.load(path, data_cache="none")
    assert folders() == ["sartor-rows"]
    prepared = prepare(rows, make_small_tokenizer(), DataSettings(data_cache="none"))
    assert folders() == ["sartor-data", "sartor-rows"]
    assert prepared.dataset.cache_files
    assert len(prepared.dataset[:]["input_ids"]) == len(ROWS)
    del rows, prepared
    assert folders() == []


def test_an_error_leaves_nothing_behind(tmp_path: Path, all_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"2\n')
    for option in ("none", str(tmp_path / "cache")):
        with pytest.raises(DataError, match="quote left open"):
            sources.load(path, data_cache=option)
    rows = sources.load(write(tmp_path / "b.parquet", [{"messages": [{"role": "robot", "content": "Hi"}]}]))
    with pytest.raises(DataError, match="robot"):
        prepare(rows, make_small_tokenizer(), DataSettings(data_cache="none"))
    del rows
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


PROGRAM = """
import json, resource, sys
from pathlib import Path
from sartor.batching.packing import pack
from sartor.data import entries
from sartor.data.encoding.encode import prepare
from sartor.data.reading import sources
from sartor.records import DataSettings
from tests.data.conftest import make_small_tokenizer

path, cache, limit = sys.argv[1:]
entries.LARGE_BYTES = 1 << 24
tokenizer = make_small_tokenizer()
small = Path(path).with_name("small.jsonl")
prepare(sources.load(small), tokenizer, DataSettings(data_cache="none"))  # everything is imported
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + int(limit), resource.RLIM_INFINITY))
rows = sources.load(path, data_cache=cache)
settings = DataSettings(data_cache=cache, packing=True, shuffle_dataset=True)
prepared = prepare(rows, tokenizer, settings, pack=pack)
print(json.dumps([len(rows), prepared.summary.num_tokens, prepared.places.where(0)]))
"""
LONG = "Why is the sea salt, and who has put it there? " * 20
limits_memory = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")


def in_limited_memory(tmp_path: Path, row: dict[str, Any], num_rows: int, limit: int, cache: str) -> list[Any]:
    """Read and prepare a file of so many such rows in a process that gets so many bytes for it, and no more."""
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for _ in range(num_rows):
            file.write(json.dumps(row) + "\n")
    (tmp_path / "small.jsonl").write_text(json.dumps(row) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), cache, str(limit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: list[Any] = json.loads(done.stdout)
    return told


@limits_memory
def test_a_file_larger_than_memory_is_read(tmp_path: Path) -> None:
    # In memory it would take 160 MB.
    row = {**ROWS[5], "note": LONG * 40}
    assert in_limited_memory(tmp_path, row, 4_200, 128 << 20, "none")[0] == 4_200


@pytest.mark.slow
@limits_memory
@pytest.mark.parametrize("cache", ["none", "CACHE"])
def test_tokens_larger_than_memory_are_kept_packed_and_shuffled(cache: str, tmp_path: Path) -> None:
    # In memory its 23 million tokens and their labels would take 184 MB.
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": LONG}]}
    told = in_limited_memory(tmp_path, row, 40_000, 128 << 20, cache.replace("CACHE", str(tmp_path / "cache")))
    assert told[0] == 40_000
    assert told[1] > 23_000_000
