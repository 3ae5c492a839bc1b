"""Checkpoint folders.

Any damage is noticed, the one before is used, and a manifest stands beside nothing that is half.
"""

import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sartor.errors import ConfigurationError
from sartor.run import checkpoint, snapshot, tensor_file
from tests import kill_calls

ROOT = Path(__file__).parents[2]

STATE = {
    "optimizer": {"state": {0: {"exp_avg": torch.arange(40, dtype=torch.float32), "step": torch.tensor(3.0)}}},
    "generators": {"torch": torch.get_rng_state()},
    "cursor": {"epoch": 1, "optimizer_batches": 7},
}


def make(run_folder: Path, step: int, *, state: dict[str, Any] | None = None, run: int = 1) -> Path:
    """A checkpoint as a run writes it, with a subfolder, an empty file, and a model of a few bytes."""
    target = run_folder / f"checkpoint-{step}"
    partial = checkpoint.partial_path(target)
    (partial / "adapter").mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(os.urandom(500))
    (partial / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (partial / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    known = checkpoint.write_state(partial, checkpoint.pack_state({**STATE, "step": step} if state is None else state))
    checkpoint.seal(partial, known, run=run)
    checkpoint.publish(partial, target)
    return target


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


ALL_FILES = [
    "adapter/adapter_config.json",
    "manifest.json",
    "model.safetensors",
    "run_state/state.json",
    "run_state/state.safetensors",
    "trainer_state.json",
]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def flip_last(path: Path) -> None:
    flip(path, path.stat().st_size - 1)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[max(place, 0)] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    folder = make(tmp_path, 4)
    assert files_of(folder) == ALL_FILES
    checkpoint.verify(folder)
    state = checkpoint.read_state(folder)
    assert state["cursor"] == STATE["cursor"]
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.arange(40, dtype=torch.float32))
    assert not list(tmp_path.glob("_*"))


@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("damage", [truncate, empty, flip_first, flip_middle, flip_last, remove])
def test_every_damage_is_noticed_and_the_one_before_is_used(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    before = make(tmp_path, 4)
    newest = make(tmp_path, 8)
    damage(newest / name)
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.verify(newest)
    found = checkpoint.newest(tmp_path)
    assert found.path == before
    ((where, problem),) = found.damaged
    assert where == newest
    assert Path(name).name in problem


def test_newer_is_a_matter_of_steps_and_not_of_text(tmp_path: Path) -> None:
    make(tmp_path, 10)
    make(tmp_path, 9)
    assert checkpoint.newest(tmp_path).path == tmp_path / "checkpoint-10"


def test_one_that_holds_the_model_alone_is_not_gone_on_from(tmp_path: Path) -> None:
    make(tmp_path, 2)
    alone = make(tmp_path, 4)
    shutil.rmtree(alone / checkpoint.STATE_FOLDER)
    checkpoint.seal(alone, run=1)
    found = checkpoint.newest(tmp_path)
    assert found.path == tmp_path / "checkpoint-2"
    assert "model alone" in found.damaged[0][1]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-3").write_text("a file", encoding="utf-8")
    assert checkpoint.newest(tmp_path) == checkpoint.Found(None, ())
    assert checkpoint.newest(tmp_path / "nowhere").path is None


class Killed(BaseException):
    """In place of SIGKILL."""


def test_killed_at_any_operation_a_manifest_is_found_only_beside_what_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment, what has a checkpoint's name verifies, and so does what has a manifest at all."""
    to_disk, write_text, replace = checkpoint._to_disk, Path.write_text, os.replace
    left = 0

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    def half_written(path: Path, text: str, **options: Any) -> int:
        if left == 1:
            write_text(path, text[: len(text) // 2], **options)
        tick()
        return write_text(path, text, **options)

    monkeypatch.setattr(checkpoint, "_to_disk", lambda path: (tick(), to_disk(path)))
    monkeypatch.setattr(Path, "write_text", half_written)
    monkeypatch.setattr(os, "replace", lambda one, other: (tick(), replace(one, other)))
    num_kills = 0
    while True:
        run_folder = tmp_path / str(num_kills)
        left = 10**9
        make(run_folder, 1)
        left = num_kills + 1
        try:
            make(run_folder, 2)
        except Killed:
            num_kills += 1
        else:
            break
        for folder in run_folder.iterdir():
            if (folder / checkpoint.MANIFEST_NAME).exists():
                try:
                    content = json.loads((folder / checkpoint.MANIFEST_NAME).read_text(encoding="utf-8"))
                except ValueError:  # half a manifest promises nothing
                    assert folder.name.startswith("_")
                    continue
                assert set(content["files"]) == set(ALL_FILES) - {checkpoint.MANIFEST_NAME}
                checkpoint.verify(folder)
        newest = checkpoint.newest(run_folder)
        assert newest.path is not None
        assert newest.damaged == ()
        checkpoint.settle(run_folder)
        assert not list(run_folder.glob("_*"))
    assert num_kills > 12


def test_killed_at_any_system_call_what_is_whole_has_its_name_in_the_end() -> None:
    """Of writing over a checkpoint and deleting another, and then of putting in order what that left.

    In an own process, which a library is loaded into.
    """
    if (reason := kill_calls.why_not()) is not None:
        pytest.skip(reason)
    done = kill_calls.run_preloaded(
        ["-m", "tests.kill", "--every-call", "folders"], capture_output=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout.split(" kills at ")[0].split()[-1]) > 100


def test_a_whole_one_that_the_disk_has_damaged_since_gives_the_old_one_its_name_back(tmp_path: Path) -> None:
    """Both under private names, as a kill between two renames leaves them."""
    new = make(tmp_path, 4, state={"which": "new"})
    flip_last(new / "model.safetensors")
    os.replace(new, tmp_path / "_checkpoint-4.partial.damaged")
    old = make(tmp_path, 4, state={"which": "old"})
    os.replace(old, tmp_path / "_checkpoint-4.replaced")
    os.replace(tmp_path / "_checkpoint-4.partial.damaged", tmp_path / "_checkpoint-4.partial")
    assert checkpoint.settle(tmp_path) == {"_checkpoint-4.partial": None, "_checkpoint-4.replaced": old}
    assert checkpoint.read_state(old) == {"which": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_rename_that_the_system_refuses_leaves_the_old_one_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path, 4, state={"which": "old"})
    replace = os.replace

    def refuses(one: Path, other: Path) -> None:
        if str(one).endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        replace(one, other)

    monkeypatch.setattr(os, "replace", refuses)
    with pytest.raises(PermissionError):
        make(tmp_path, 4, state={"which": "new"})
    assert checkpoint.read_state(folder) == {"which": "old"}


def test_a_link_is_not_taken_for_what_a_killed_save_left(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", 4)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for word in ("partial", "replaced", "deleted"):
        (run_folder / f"_checkpoint-4.{word}").symlink_to(elsewhere)
    assert checkpoint.settle(run_folder)["_checkpoint-4.partial"] is None
    assert not list(run_folder.iterdir())
    checkpoint.verify(elsewhere)


def test_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    to_disk, replace = checkpoint._to_disk, os.replace
    monkeypatch.setattr(checkpoint, "_to_disk", lambda path: (order.append(path.name), to_disk(path)))
    monkeypatch.setattr(os, "replace", lambda one, other: (order.append("rename"), replace(one, other)))
    make(tmp_path, 4)
    manifest = order.index(checkpoint.MANIFEST_NAME)
    assert {Path(name).name for name in ALL_FILES} - {checkpoint.MANIFEST_NAME} <= set(order[:manifest])
    assert {"run_state", "adapter", "_checkpoint-4.partial"} <= set(order[:manifest])  # the files' names too
    assert order[manifest:] == [checkpoint.MANIFEST_NAME, "_checkpoint-4.partial", "rename", tmp_path.name]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    make(tmp_path, 4, state={"which": "old"})
    folder = make(tmp_path, 4, state={"which": "new"})
    assert checkpoint.read_state(folder) == {"which": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_what_is_half_deleted_has_no_checkpoints_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, 4)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    checkpoint.delete(folder)
    assert checkpoint.newest(tmp_path) == checkpoint.Found(None, ())
    monkeypatch.undo()
    assert checkpoint.settle(tmp_path) == {}  # nothing was half written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "best", "gone"),
    [
        (None, None, []),
        (0, None, []),
        (2, None, [2, 4]),
        (2, 2, [4, 6]),
        (1, 2, [4, 6]),
        (1, None, [2, 4, 6]),
        (9, 2, []),
    ],
)
def test_the_newest_and_the_best_are_kept(limit: int | None, best: int | None, gone: list[int], tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        os.utime(make(tmp_path, step), ns=(10**18 - step, 10**18 - step))  # the clock was set back, again and again
    newest = tmp_path / "checkpoint-8"
    chosen = checkpoint.superfluous(newest, limit, None if best is None else tmp_path / f"checkpoint-{best}")
    assert [checkpoint.step_of(path) for path in chosen] == gone


@pytest.mark.parametrize("copied_run", [1, 3, 5, 10**30, None, -1, True, "7", [], "no manifest"])
def test_what_is_deleted_first_is_what_an_earlier_run_left_whatever_its_step_and_clock(
    copied_run: Any, tmp_path: Path
) -> None:
    """Also where a checkpoint was copied here while the run is under way, and says of its run whatever it likes."""
    make(tmp_path, 1000, run=2)
    make(tmp_path, 7, run=2)
    for step in (5, 10):
        make(tmp_path, step, run=4)
    copied = make(tmp_path, 500, run=copied_run)
    if copied_run == "no manifest":
        (copied / checkpoint.MANIFEST_NAME).unlink()
    for number, path in enumerate(tmp_path.iterdir()):
        os.utime(path, ns=(number, number))
    newest = make(tmp_path, 15, run=4)
    os.utime(newest, ns=(0, 0))
    chosen = [checkpoint.step_of(path) for path in checkpoint.superfluous(newest, 1, tmp_path / "checkpoint-5")]
    assert sorted(chosen) == [7, 10, 500, 1000]
    assert chosen.index(7) < chosen.index(1000) < chosen.index(10)
    assert chosen[-1] == 10


def test_a_later_run_has_a_higher_number_and_one_that_goes_on_keeps_its_own(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert checkpoint.run_number(here) == 1
    first, second, elsewhere = make(here, 9, run=1), make(here, 3, run=2), make(there, 6, run=1)
    assert checkpoint.run_number(here) == 3
    assert checkpoint.run_number(here, first) == 1
    assert checkpoint.run_number(here, second) == 2
    assert checkpoint.run_number(here, elsewhere) == 3
    assert checkpoint.run_number(tmp_path / "nowhere", second) == 2
    checkpoint.set_aside(second, "abandoned")  # it may be given its name back
    assert checkpoint.run_number(here) == 3


def test_newer_is_a_matter_of_runs_first(tmp_path: Path) -> None:
    old, older = make(tmp_path, 9, run=1), make(tmp_path, 5, run=1)
    new, newer = make(tmp_path, 3, run=2), make(tmp_path, 4, run=2)
    assert checkpoint.in_order(tmp_path) == [older, old, new, newer]
    assert checkpoint.later_than(old) == [new, newer]
    assert checkpoint.newest(tmp_path).path == newer
    flip_middle(newer / checkpoint.MANIFEST_NAME)
    found = checkpoint.newest(tmp_path)
    assert found.path == new
    assert [path for path, _ in found.damaged] == [newer]


def test_a_checkpoint_of_the_time_before_runs_had_numbers_is_read_and_is_the_oldest(tmp_path: Path) -> None:
    folder = make(tmp_path, 9)
    content = json.loads((folder / checkpoint.MANIFEST_NAME).read_text(encoding="utf-8"))
    del content["run"], content["blake2b"]
    text = json.dumps({**content, "blake2b": checkpoint._digest_of(content)})
    (folder / checkpoint.MANIFEST_NAME).write_text(text, encoding="utf-8")
    assert checkpoint.newest(tmp_path).path == folder
    newer = make(tmp_path, 3, run=checkpoint.run_number(tmp_path))
    assert checkpoint.newest(tmp_path).path == newer


def test_set_aside_twice_keeps_both(tmp_path: Path) -> None:
    first = checkpoint.set_aside(make(tmp_path, 4), "damaged")
    second = checkpoint.set_aside(make(tmp_path, 4), "damaged")
    assert first.name == "_checkpoint-4.damaged"
    assert second.name == "_checkpoint-4.damaged2"
    assert checkpoint.newest(tmp_path).path is None
    checkpoint.settle(tmp_path)
    assert first.exists()


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    table = torch.arange(256, dtype=torch.float32)  # 8-bit optimizers have one for all parameters
    folder = make(tmp_path, 1, state={"a": table, "b": table, "c": table[:0]})
    state = checkpoint.read_state(folder)
    assert torch.equal(state["a"], table)
    assert torch.equal(state["b"], table)


def test_what_is_written_is_a_file_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every dtype and shape, in pieces that end anywhere; numbers lie where their words are aligned."""
    from safetensors import safe_open

    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 20)
    tensors = {
        **{f"{dtype}": torch.arange(13).to(dtype) for dtype in tensor_file._NAMES},
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "turned": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
        'ä "quoted"': torch.ones(2, 1, 3, dtype=torch.bfloat16),
    }
    tensor_file.write(tmp_path / "file", snapshot.Snapshot(tensors))
    with safe_open(tmp_path / "file", "pt") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor), name
    content = (tmp_path / "file").read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert (8 + length + entry["data_offsets"][0]) % tensors[name].element_size() == 0


@pytest.mark.parametrize("direct", ["as it goes", "not at all", "not these sizes"])
@pytest.mark.parametrize("block_bytes", [mmap.PAGESIZE, 3 * mmap.PAGESIZE, 1 << 24])
def test_a_file_is_the_same_past_the_cache_or_through_it(
    block_bytes: int, direct: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file system refuses; and its checksums are those of what is then read."""
    open_file, write = os.open, os.write
    refused = []

    def refuses(*given: Any) -> int:
        if given[1] & getattr(os, "O_DIRECT", 0):
            refused.append(given)
            raise OSError(22, "Invalid argument")
        return open_file(*given)

    def refuses_first(descriptor: int, content: Any) -> int:
        if not refused:
            refused.append(descriptor)
            raise OSError(22, "Invalid argument")
        return write(descriptor, content)

    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", block_bytes)
    if direct == "not at all":
        monkeypatch.setattr(os, "open", refuses)
    elif direct == "not these sizes":
        monkeypatch.setattr(os, "write", refuses_first)
    tensors = {"a": torch.randn(3000), "b": torch.arange(5), "c": torch.randn(70, 70).to(torch.bfloat16)}
    checksums = tensor_file.write(tmp_path / "file", snapshot.Snapshot(tensors))
    monkeypatch.undo()
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", block_bytes)
    assert checksums == checkpoint._checksums(tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_where_a_large_file_is_damaged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = mmap.PAGESIZE
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", page)
    folder = make(tmp_path, 4)
    (folder / "model.safetensors").write_bytes(os.urandom(3 * page + 5))
    checkpoint.seal(folder)
    checkpoint.verify(folder)
    flip(folder / "model.safetensors", 2 * page + 1)
    with pytest.raises(checkpoint.DamagedError, match=rf"first between the bytes {2 * page:,} and {3 * page:,}$"):
        checkpoint.verify(folder)


def test_what_only_pickle_could_write_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="/optimizer/hook"):
        checkpoint.write_state(tmp_path, checkpoint.pack_state({"optimizer": {"hook": print}}))
