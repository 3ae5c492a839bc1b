"""Prepared data is found again when nothing has changed, made again when anything has, and never used damaged."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor.batching.packing import pack
from sartor.data import entries
from sartor.data.encoding import assemble, cache, keys
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.request import Request
from sartor.data.entries import folder_of
from sartor.data.rows.formats import Reading
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData, RowFormat
from tests.data.conftest import make_small_tokenizer

SOURCE = "Sigh. It smells of rubber boots."
ROWS = [
    {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": SOURCE * 20}]}
    for number in range(60)
]


@pytest.fixture(autouse=True)
def all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "CACHED_FROM_BYTES", 0)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_list(ROWS)


@pytest.fixture
def ready(rows: Dataset, tmp_path: Path) -> Callable[..., tuple[PreparedData, list[str]]]:
    """Prepares with a cache in the test's folder; returns what was prepared, and what was said."""

    def prepared(dataset: Dataset = rows, **changes: Any) -> tuple[PreparedData, list[str]]:
        said: list[str] = []
        options = {"tokenizer": make_small_tokenizer(), "name": "train", "end_tokens": (), "formatting_func": None}
        options |= {key: changes.pop(key) for key in list(changes) if key in options}
        settings = DataSettings(data_cache=changes.pop("data_cache", str(tmp_path / "cache")), **changes)
        tokenizer = options.pop("tokenizer")
        return prepare(dataset, tokenizer, settings, pack=pack, say=said.append, **options), said

    return prepared


def is_from_cache(result: tuple[PreparedData, list[str]]) -> bool:
    return any(note.startswith("Taken from the cache") for note in result[0].summary.notes)


def without_note(prepared: PreparedData) -> Any:
    notes = tuple(note for note in prepared.summary.notes if not note.startswith("Taken from the cache"))
    return replace(prepared.summary, notes=notes)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_an_entry_has_the_users_permissions(umask: int, ready: Any, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        ready(packing=True)
    finally:
        os.umask(before)
    found = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(found) > 3
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize(
    "options",
    [{}, {"packing": True, "shuffle_dataset": True, "max_length": 1500}, {"assistant_only_loss": True}],
    ids=["plain", "packed and shuffled", "answers"],
)
def test_what_is_found_is_what_was_made(ready: Any, options: dict[str, Any]) -> None:
    kept, found, alone = ready(**options), ready(**options), ready(**options, data_cache="none")
    assert not is_from_cache(kept)
    assert is_from_cache(found)
    assert found[1] == kept[1] == []
    for other in (found[0], alone[0]):
        assert without_note(other) == kept[0].summary
        assert other.dataset.data.table.equals(kept[0].dataset.data.table)
        assert other.dataset._fingerprint == kept[0].dataset._fingerprint
        assert other.dataset.features == kept[0].dataset.features
        numbers = (0, 7, len(other.dataset) - 1)
        assert [other.places.where(n) for n in numbers] == [kept[0].places.where(n) for n in numbers]
    assert found[0].dataset.cache_files, "it is mapped into memory"


def changed_tokenizer(change: str) -> Any:
    tokenizer = make_small_tokenizer()
    if change == "template":
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    if change == "vocabulary":
        tokenizer.add_tokens(["rubber"])
    if change == "special token":
        tokenizer.pad_token = "<|im_start|>"
    return tokenizer


def shouting(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"].upper() + SOURCE


def whispering(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"].lower() + SOURCE


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": Dataset.from_list([*ROWS[:-1], ROWS[0]])},
        {"dataset": Dataset.from_list(ROWS[::-1])},
        {"tokenizer": "template"},
        {"tokenizer": "vocabulary"},
        {"tokenizer": "special token"},
        {"max_length": 100},
        {"truncation_mode": "keep_end"},
        {"packing": True},
        {"seed": 1},
        {"name": "eval"},
        {"end_tokens": ("<|endoftext|>",)},
        {"formatting_func": shouting},
    ],
    ids=lambda change: "-".join(f"{name} {value if isinstance(value, str) else ''}" for name, value in change.items()),
)
def test_whatever_it_depends_on_makes_another_entry(rows: Dataset, change: dict[str, Any]) -> None:
    def key(dataset: Dataset = rows, **options: Any) -> str:
        tokenizer = changed_tokenizer(options.pop("tokenizer", ""))
        reading = Reading(RowFormat.MESSAGES, "messages", formatting_func=options.pop("formatting_func", None))
        others = {name: options.pop(name) for name in ("name", "end_tokens") if name in options}
        return keys.key_of(Request(dataset, tokenizer, reading, DataSettings(**options), pack=pack, **others))

    assert key() == key()
    assert key(**change) != key()


def test_functions_are_told_apart_by_what_they_do() -> None:
    assert keys.function_digest(shouting) == keys.function_digest(shouting)
    assert keys.function_digest(shouting) != keys.function_digest(whispering)
    first, second = (lambda row, end=end: row["text"] + end for end in "ab")
    assert keys.function_digest(first) != keys.function_digest(second)


def test_versions_and_code_are_in_the_key(rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        reading = Reading(RowFormat.MESSAGES, "messages")
        return keys.key_of(Request(rows, make_small_tokenizer(), reading, DataSettings()))

    found = {key()}
    for package in ("transformers", "tokenizers", "jinja2", "datasets"):
        with monkeypatch.context() as patch:
            patch.setattr(keys, "version", lambda name, new=package: "0" if name == new else "1")
            found.add(key())
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_sources_digest", lambda: "other")
        found.add(key())
    assert len(found) == 6


def test_how_many_processes_and_where_it_is_kept_make_no_other_entry(ready: Any) -> None:
    ready(num_proc=1)
    assert is_from_cache(ready(num_proc=2))


def entry_of(result: tuple[PreparedData, list[str]]) -> Path:
    return Path(result[0].dataset.cache_files[0]["filename"]).parent


@pytest.mark.parametrize("name", [cache.DATA, cache.PLACES, entries.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_entry_is_said_and_made_again(ready: Any, name: str, damage: str) -> None:
    first = ready()
    file = entry_of(first) / name
    content = bytearray(file.read_bytes())
    file.unlink()  # not in place: what is mapped stays as it was
    if damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    again, said = ready()
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert "made again" in said[0]
    assert again.summary == first[0].summary
    assert is_from_cache(ready())


def test_files_of_a_new_entry_are_hashed_once_and_those_that_are_found_are_verified(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    usual = entries.digest_of_file

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return usual(path)

    monkeypatch.setattr(entries, "digest_of_file", counted)
    made = ready()
    assert sorted(hashed) == sorted([cache.DATA, cache.PLACES])
    hashed.clear()
    assert is_from_cache(found := ready())
    assert sorted(hashed) == sorted([cache.DATA, cache.PLACES])
    assert found[0].digest == made[0].digest is not None


def test_what_a_killed_process_left_is_no_entry(ready: Any, tmp_path: Path) -> None:
    key = entry_of(ready()).name
    entry = tmp_path / "cache" / key
    entry.rename(entry.with_name(f"{key}.building"))
    assert not is_from_cache(ready())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [key, f"{key}.lock"]


def test_bad_rows_are_told_again_and_skipped_ones_are_counted_again(ready: Any) -> None:
    bad = Dataset.from_list([*ROWS, {"messages": [{"role": "robot", "content": "Beep"}]}])
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 61 rows"):
            ready(bad)
    kept, found = ready(bad, bad_rows="skip"), ready(bad, bad_rows="skip")
    assert is_from_cache(found)
    assert found[0].summary.num_skipped_rows == 1
    assert without_note(found[0]) == kept[0].summary


@pytest.mark.parametrize("place", ["a file", "full"])
def test_where_nothing_can_be_written_the_data_is_prepared_in_memory(
    ready: Any, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so a read-only folder is stood in for by a file; a full disk by a full device."""
    folder = tmp_path / "cache"
    if place == "a file":
        folder.write_text("no folder")
    else:
        opened = Path.open

        def full(path: Path, *arguments: Any, **options: Any) -> Any:
            return opened(Path("/dev/full") if path.suffix == ".raw" else path, *arguments, **options)

        monkeypatch.setattr(Path, "open", full)
    prepared, said = ready(data_cache=str(folder))
    assert len(said) == 1
    assert "prepared in memory" in said[0]
    assert prepared.summary == ready(data_cache="none")[0].summary
    assert not list(tmp_path.rglob("*.building"))


def test_small_data_is_not_kept(ready: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "CACHED_FROM_BYTES", 1 << 20)
    ready(Dataset.from_list(ROWS[:3]))
    assert not (tmp_path / "cache").exists()


def test_the_folder_is_beside_the_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/somewhere")
    assert folder_of(None) == Path("/somewhere/sartor")
    assert folder_of("none") is None
    assert folder_of("~/there") == Path.home() / "there"


WAITING = """
import sys, time
from pathlib import Path
from sartor.data.encoding import cache
from sartor.data.reading.places import Places
from sartor.records import DataSummary, PreparedData, RowFormat
import datasets
def make(folder):
    Path(sys.argv[2]).write_text("")
    while not Path(sys.argv[3]).exists():
        time.sleep(0.02)
    from sartor.data.tokens.table import TokenRows
    from sartor.data.encoding import store
    rows = TokenRows.from_lists([[1]], [[1]])
    store.write_file(rows, None, folder / cache.DATA)
    summary = DataSummary("train", RowFormat.TEXT, 1, 1, 1, 1, 1)
    return PreparedData(None, summary, Places.of_texts(["a, row 0"]), digest="0")
found = cache.cached("key", Path(sys.argv[1]), make, lambda said: print(said, flush=True))
print(found.dataset[0], found.summary.notes, flush=True)
"""


def started(folder: Path, mark: Path, go_on: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAITING, str(folder), str(mark), str(go_on)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def wait_for(mark: Path) -> None:
    end = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_process_waits_for_the_first_and_finds_what_it_made(tmp_path: Path) -> None:
    first = started(tmp_path / "cache", tmp_path / "first", tmp_path / "go on")
    wait_for(tmp_path / "first")
    second = started(tmp_path / "cache", tmp_path / "second", tmp_path)
    assert second.stdout is not None
    assert "waiting for it" in second.stdout.readline()
    (tmp_path / "go on").touch()
    said = second.communicate(timeout=60)[0]
    assert "Taken from the cache" in said
    assert not (tmp_path / "second").exists(), "it prepared nothing itself"
    assert first.wait(60) == 0


def test_a_second_process_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    first = started(tmp_path / "cache", tmp_path / "first", tmp_path / "never")
    wait_for(tmp_path / "first")
    second = started(tmp_path / "cache", tmp_path / "second", tmp_path)
    assert second.stdout is not None
    assert "waiting for it" in second.stdout.readline()
    first.kill()
    said = second.communicate(timeout=60)[0]
    assert "{'input_ids': [1], 'labels': [1]} ()" in said
    assert (tmp_path / "second").exists()
    first.wait()


def test_an_entry_holds_no_pickle_and_says_what_is_in_it(ready: Any) -> None:
    entry = entry_of(ready())
    assert sorted(path.name for path in entry.iterdir()) == [cache.DATA, entries.MANIFEST, cache.PLACES]
    summary = json.loads((entry / entries.MANIFEST).read_text())["content"]["summary"]
    assert summary["num_rows"] == len(ROWS)


def test_tests_have_a_cache_of_their_own() -> None:
    folder = folder_of(None)
    assert folder is not None
    assert folder.parent == Path(os.environ["SARTOR_TESTS_CACHE"])
