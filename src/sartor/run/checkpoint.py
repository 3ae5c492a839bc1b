"""Checkpoint folders: written beside their place, sealed by a manifest, and found again.

In: a folder with a model in it, and the state of a run.  Out: `checkpoint-N`, whole or not at all.  What it keeps true:
a folder with a manifest that verifies holds every byte that was written; files reach the disk before the manifest, the
manifest before the name, and nothing is loaded whose bytes are not the ones that were written.  Which checkpoint is
newer is a matter of run and step, never of a clock: each manifest has the number of its run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartor.run import checked_state, plain_files, tensor_file
from sartor.run import state as packing
from sartor.run.plain_files import DamagedError as DamagedError
from sartor.run.snapshot import Snapshot

MANIFEST_NAME = "manifest.json"
STATE_FOLDER = "run_state"
_TENSORS_NAME = "state.safetensors"
_TREE_NAME = "state.json"
_FORMAT = 4
PREFIX = "checkpoint-"
_NAME = re.compile(rf"{PREFIX}(\d+)")
_ASIDE = re.compile(r"_(checkpoint-\d+)\.(partial|replaced|deleted)")
"""Being written; whole, and about to be replaced by what was written; being deleted."""


@dataclass(frozen=True, slots=True)
class Found:
    """The newest checkpoint of a run folder that can be gone on from, and what is wrong with newer ones."""

    path: Path | None
    damaged: tuple[tuple[Path, str], ...]
    """Newest first: (folder, what is wrong with it)."""


# --- writing -------------------------------------------------------------------------------------------------------


def partial_path(target: Path) -> Path:
    """Where `target` is written before it is whole."""
    return target.with_name(f"_{target.name}.partial")


@dataclass(frozen=True, slots=True)
class Packed:
    """The state of a run at one moment, ready to be written."""

    tree: dict[str, Any]
    """What JSON holds; nothing of it is shared with the run."""
    tensors: Snapshot


def pack_state(
    state: Mapping[str, Any], beside: Mapping[str, torch.Tensor] | None = None, *, model_is_due: bool = False
) -> Packed:
    """Take the state of a run apart; its large tensors are read later, where they lie, and not copied.

    Args:
        state: of the run.
        beside: more tensors of the same snapshot, by keys of their own.
        model_is_due: the model is read as a whole before (see `Snapshot`).

    Raises:
        ConfigurationError: something in it can only be pickled; names it.
    """
    tree, tensors = packing.pack(dict(state), "the run")
    return Packed(tree, Snapshot({**tensors, **(beside or {})}, model_is_due=model_is_due))


def write_state(folder: Path, packed: Packed) -> dict[str, list[int]]:
    """Write the state of a run into a checkpoint that is being made; the checksums that are known, for `seal`.

    Raises:
        ConfigurationError: a tensor has a dtype that cannot be written.
        OSError: the disk is full, or refuses.
    """
    (folder / STATE_FOLDER).mkdir(exist_ok=True)
    checksums = tensor_file.write(folder / STATE_FOLDER / _TENSORS_NAME, packed.tensors)
    text = json.dumps(packed.tree, ensure_ascii=False, allow_nan=False)
    (folder / STATE_FOLDER / _TREE_NAME).write_text(text, encoding="utf-8")
    return {f"{STATE_FOLDER}/{_TENSORS_NAME}": checksums}


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, of a checkpoint that was verified; tensors are on the CPU.

    Raises:
        DamagedError: it cannot be read.
    """
    from safetensors.torch import load_file

    place = folder / STATE_FOLDER
    tree = plain_files.read_object(place / _TREE_NAME, plain_files.JSON_BYTES)
    try:
        tensors = load_file(str(place / _TENSORS_NAME))
    except Exception as error:  # of safetensors, torch or the system: whatever they find in it
        raise DamagedError(f"{STATE_FOLDER}/{_TENSORS_NAME} cannot be read ({error})") from error
    try:
        state: dict[str, Any] = packing.unpack(tree, tensors)
    except ValueError as error:
        raise DamagedError(f"{STATE_FOLDER}/{_TREE_NAME} cannot be read ({error})") from error
    return state


@contextmanager
def named(name: str = f"{STATE_FOLDER}/{_TREE_NAME}") -> Iterator[None]:
    """Name the file in errors about its keys.

    Raises:
        DamagedError: in place of one that names the key alone.
    """
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{name}: {error}") from error


def read_run(folder: Path) -> dict[str, Any]:
    """`read_state` of a run's checkpoint, with everything checked that can be without the run that goes on.

    Raises:
        DamagedError: it cannot be read, or be the state of a run; names file and key.
    """
    content = read_state(folder)
    with named():
        checked_state.check_content(content)
    return content


def seal(folder: Path, known: Mapping[str, list[int]] | None = None, *, run: int = 0) -> None:
    """See every file of `folder` onto the disk, and then a manifest with size and checksums of each.

    Args:
        folder: of the checkpoint.
        known: checksums of files that need not be read for them, since they were computed when these were written.
        run: that wrote it (see `run_number`).

    Raises:
        OSError: the disk is full, or refuses.
    """
    files = {}
    folders = {folder}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.add(path)
        elif path.name != MANIFEST_NAME or path.parent != folder:
            _to_disk(path)
            name = path.relative_to(folder).as_posix()
            checksums = (known or {}).get(name) or _checksums(path)
            files[name] = {"bytes": path.stat().st_size, "xxh3_64": checksums}
    for inner in sorted(folders):
        _to_disk(inner)
    content = {"format": _FORMAT, "run": run, "files": files}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({**content, "blake2b": _digest_of(content)}, indent=1), encoding="utf-8")
    _to_disk(manifest)
    _to_disk(folder)


def publish(partial: Path, target: Path) -> None:
    """Give a sealed folder its name; from here on it is a checkpoint.

    One that has the name already is renamed before, and deleted when the new one is on the disk: between the two
    renames both are whole, and `settle` gives the new one its name.

    Raises:
        OSError: the system refuses; what had the name has it still.
    """
    replaced = target.with_name(f"_{target.name}.replaced")
    if target.exists():
        _delete(replaced, target)
        os.replace(target, replaced)
        try:
            os.replace(partial, target)
        except BaseException:
            os.replace(replaced, target)
            raise
    else:
        os.replace(partial, target)
    _to_disk(target.parent)
    _delete(replaced, target)


def delete(folder: Path) -> None:
    """Delete a checkpoint; killed in the middle of it, what is left has no checkpoint's name."""
    _delete(folder, folder)


def _delete(folder: Path, target: Path) -> None:
    """Delete a folder, if it is there, under the name that what is half deleted of a checkpoint has."""
    aside = target.with_name(f"_{target.name}.deleted")
    _remove(aside)
    if folder.exists():
        os.replace(folder, aside)
        _remove(aside)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to is somebody else's
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def superfluous(newest: Path, limit: int | None, best: Path | None) -> list[Path]:
    """The checkpoints to delete so that `limit` stay, by transformers' rule: never the newest, never the best.

    The run that has just saved is the latest one, whatever number others have; the older ones go first: by run, and
    within a run by step.  What has no number is older than all.

    Args:
        newest: the checkpoint that was just saved.
        limit: `save_total_limit`; None or 0: all stay.
        best: the checkpoint of the best metric.
    """
    if not limit or limit < 0:
        return []
    ours = run_of(newest)
    runs = {path: run_of(path) for path in _checkpoints(newest.parent)}
    stay = {path.resolve() for path in (newest, best) if path is not None}
    protected = {path for path in runs if path.resolve() in stay}

    def age(path: Path) -> tuple[bool, int, int]:
        run = runs[path]
        return run == ours, -1 if run is None else run, step_of(path)

    surplus = len(runs) - max(limit, len(protected))
    return [path for path in sorted(runs, key=age) if path not in protected][: max(surplus, 0)]


# --- runs ----------------------------------------------------------------------------------------------------------


def run_number(run_folder: Path, resumed: Path | None = None) -> int:
    """The number of a run among those of its folder: a later run has a higher one.

    Worked example: a folder holds checkpoints of the runs 1 and 2.  A run that begins anew is 3; one that goes on from
    a checkpoint of 2 is 2 (what was newer than this checkpoint was set aside before); one that goes on from a
    checkpoint of another folder, of run 1 there, is 3 here.

    Args:
        run_folder: of the run.
        resumed: the checkpoint that it goes on from.
    """
    own = 1 if resumed is None else run_of(resumed) or 0
    if resumed is not None and resumed.parent.resolve() == run_folder.resolve():
        return own
    return max([own, *(1 + (run_of(path) or 0) for path in _folders(run_folder))])


def run_of(folder: Path) -> int | None:
    """The number of the run that wrote a checkpoint, verified or not; None where nothing tells it.

    0: it was written before runs had numbers.
    """
    try:
        run = plain_files.read_object(folder / MANIFEST_NAME, plain_files.MANIFEST_BYTES).get("run", 0)
    except (OSError, plain_files.DamagedError):
        return None
    return run if type(run) is int and run >= 0 else None


# --- finding and verifying -----------------------------------------------------------------------------------------


def has_manifest(folder: Path) -> bool:
    """Whether this is a checkpoint of ours, damaged or not."""
    return (folder / MANIFEST_NAME).exists() or (folder / STATE_FOLDER).exists()


def has_state(folder: Path) -> bool:
    """Whether a run can go on from this checkpoint; False where it holds the model alone."""
    return (folder / STATE_FOLDER / _TREE_NAME).exists()


def verify(folder: Path) -> None:
    """See that a checkpoint is, byte for byte, what was written.

    Raises:
        DamagedError: it is not; says which file, and how.
    """
    try:
        plain_files.see_plain(folder)
        content = plain_files.read_object(folder / MANIFEST_NAME, plain_files.MANIFEST_BYTES)
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST_NAME} is missing") from None
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error
    if content.pop("blake2b", None) != _digest_of(content):
        raise DamagedError(f"{MANIFEST_NAME} was changed since it was written")
    if content.get("format") != _FORMAT:
        raise DamagedError(f"its format is {content.get('format')!r}, and this version of Sartor reads {_FORMAT}")
    files = plain_files.listed(content, MANIFEST_NAME)
    unlisted = [name for name in _files_of_the_run(folder) if name not in files]
    if unlisted:
        raise DamagedError(f"{unlisted[0]} is not among the files that {MANIFEST_NAME} lists")
    for name, expected in files.items():
        path = folder / name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != expected["bytes"]:
                raise DamagedError(f"{name} has {size_bytes} bytes in place of {expected['bytes']}")
            if (found := _checksums(path)) != expected["xxh3_64"]:
                raise DamagedError(f"the content of {name} was changed since it was written{_where(found, expected)}")
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        except DamagedError:
            raise
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error


def _files_of_the_run(folder: Path) -> Iterator[str]:
    """Names of the files that a run reads when it goes on from a checkpoint."""
    for path in [*(folder / STATE_FOLDER).glob("*"), *folder.glob("*.safetensors"), *folder.glob("trainer_state.json")]:
        yield path.relative_to(folder).as_posix()


def newest(run_folder: Path) -> Found:
    """The newest checkpoint that verifies and holds a run's state, and the damaged ones that are newer."""
    damaged = []
    for folder in reversed(in_order(run_folder)):
        if not has_manifest(folder):
            damaged.append((folder, "it was not written by Sartor, or lost its manifest and its state"))
            continue
        try:
            verify(folder)
        except DamagedError as error:
            damaged.append((folder, str(error)))
            continue
        if has_state(folder):
            return Found(folder, tuple(damaged))
        damaged.append((folder, "it holds the model alone (save_only_model=True)"))
    return Found(None, tuple(damaged))


def in_order(run_folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first: by run, and within a run by step.

    One that has no number may be a damaged one of the latest run, and is taken for that.
    """
    places = _places(_checkpoints(run_folder))
    return sorted(places, key=places.__getitem__)


def later_than(folder: Path) -> list[Path]:
    """The checkpoints beside this one that are newer, oldest first; see `in_order`."""
    places = _places([*_checkpoints(folder.parent), folder])
    return sorted((path for path in places if places[path] > places[folder]), key=places.__getitem__)


def _places(folders: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Run and step of each."""
    runs = {path: run_of(path) for path in folders}
    latest = max((run for run in runs.values() if run is not None), default=0)
    return {path: (latest if run is None else run, step_of(path)) for path, run in runs.items()}


def set_aside(folder: Path, word: str) -> Path:
    """Rename a checkpoint so that nothing takes it for one any more; returns its new place."""
    number = 1
    while (aside := folder.with_name(f"_{folder.name}.{word}{'' if number == 1 else number}")).exists():
        number += 1
    os.replace(folder, aside)
    return aside


def settle(run_folder: Path) -> dict[str, Path | None]:
    """Put in order what a killed run left: nothing that is whole is lost, and nothing half stays.

    What was written and sealed, and is what was written, gets its name.  What was renamed to be replaced gets its name
    back where nothing has replaced it.  All else is deleted.  Killed in the middle of this, it can be done again.

    Returns:
        By the name of each folder that was being written or replaced: the checkpoint that it is now; None: it was
        incomplete, and is deleted.
    """
    found = {path: match for path in _folders(run_folder) if (match := _ASIDE.fullmatch(path.name))}
    became: dict[str, Path | None] = {}
    for path, match in sorted(found.items(), key=lambda item: item[1][2]):  # deleted, partial, replaced
        target = path.with_name(match[1])
        if match[2] == "partial":
            is_whole = _is_whole(path)
            if is_whole:
                publish(path, target)
            became[path.name] = target if is_whole else None
        elif match[2] == "replaced" and path.exists() and not target.exists() and not path.is_symlink():
            os.replace(path, target)
            became[path.name] = target
        if path.exists():
            _delete(path, target)
    if became:
        _to_disk(run_folder)
    return became


def _is_whole(folder: Path) -> bool:
    if folder.is_symlink():  # no checkpoint of ours begins as one
        return False
    try:
        verify(folder)
    except DamagedError:
        return False
    return True


def step_of(folder: Path) -> int:
    """N of `checkpoint-N`; -1 for another name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _checkpoints(run_folder: Path) -> list[Path]:
    return [path for path in _folders(run_folder) if _NAME.fullmatch(path.name)]


def _folders(run_folder: Path) -> Iterator[Path]:
    return (path for path in run_folder.iterdir() if path.is_dir()) if run_folder.is_dir() else iter(())


def _checksums(path: Path) -> list[int]:
    """Of each block of a file.  A cryptographic digest would cost a run as much as all the rest of a save."""
    checksums = []
    block = memoryview(bytearray(min(tensor_file.BLOCK_BYTES, max(1, path.stat().st_size))))
    with plain_files.open_plain(path) as file:  # buffered: a raw file may give less than was asked for
        while length := file.readinto(block):
            checksums.append(tensor_file.checksum(block[:length]))
    return checksums


def _where(found: list[int], expected: Mapping[str, Any]) -> str:
    """For messages: the first block that differs."""
    pairs = enumerate(zip(found, expected["xxh3_64"], strict=False))
    number = next((number for number, (one, other) in pairs if one != other), 0)
    if expected["bytes"] <= tensor_file.BLOCK_BYTES:
        return ""
    return (
        f", first between the bytes {number * tensor_file.BLOCK_BYTES:,} and {(number + 1) * tensor_file.BLOCK_BYTES:,}"
    )


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()


def _to_disk(path: Path) -> None:
    """Make what is written durable; a folder's own names too, where the system can do that."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def num_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested value."""
    if isinstance(value, torch.Tensor):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(num_bytes(part) for part in value.values())
    return sum(num_bytes(part) for part in value) if isinstance(value, list | tuple) else 0
