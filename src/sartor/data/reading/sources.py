"""Finds and reads a source of rows: a file, a data set of the Hub, or one that is in memory already.

What comes in: a path, a Hub id, a data set or a list of dicts.  What goes out: a `Source` with a `datasets.Dataset` or
`IterableDataset`, rows in the order in which they stand there.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.reading.files import kind_of, read_files
from sartor.data.reading.folders import Folder, is_saved_dataset, read_saved
from sartor.data.reading.problems import excerpt
from sartor.data.reading.tables import WHERE_COLUMN, dataset_of, places_column
from sartor.errors import DataError, HubError
from sartor.records import Problem, Row
from sartor.wording import listed

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that were found, and what to say about how."""

    dataset: Any
    """`Dataset` or `IterableDataset`."""
    label: str = ""
    """What the user calls it: a path or Hub id; empty for data sets in memory."""
    notes: tuple[str, ...] = ()
    weight: float | None = None
    """In a mixture; None: its sources are not weighed, and follow one another."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which rows of a source are wanted, and what for; see `read`."""

    split: str | None
    config: str | None
    revision: str | None
    name: str
    long_names: bool
    data_cache: str | None


def load(
    spec: object,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    name: str = "train",
    data_cache: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of a source alone; see `read`."""
    dataset: datasets.Dataset | datasets.IterableDataset = read(
        spec, split=split, config=config, revision=revision, name=name, data_cache=data_cache
    ).dataset
    return dataset


def read(
    spec: object,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    name: str = "train",
    long_names: bool = False,
    data_cache: str | None = None,
) -> Source:
    """Read a source of rows.

    Args:
        spec: the path of a file (JSON lines, JSON, CSV, Parquet or Arrow by its suffix; `.gz` may follow text), of a
            folder of them or of a saved data set, a Hub id, a `Dataset`, `IterableDataset`, `DatasetDict` or
            `IterableDatasetDict`, a list of dicts, or what this function returned.
        split: which part of a source that has several; without it the only one, or the one called `name`.
        config: the Hub data set's configuration.
        revision: branch, tag or commit of a Hub data set.
        name: what the rows are for, `train` or `eval`; messages use it.
        long_names: whether places of rows tell a file's path as it was given, and not its name alone.
        data_cache: where rows of files that are too large for memory are kept; see `DataSettings`.

    Raises:
        DataError: no such file (names what is near it), no such data set or split, files that cannot be read.
        HubError: the Hub cannot be reached.
    """
    import datasets

    if isinstance(spec, Source):
        return spec
    if isinstance(spec, (str, os.PathLike)):
        return _read_named(os.fspath(spec), _Wanted(split, config, revision, name, long_names, data_cache))
    for option, value in (("config", config), ("revision", revision)):
        if value is not None:
            raise DataError(f"{option}={value!r} applies to data sets of the Hub only. Leave it out.")
    if isinstance(spec, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return _chosen(spec, split, name, "the DatasetDict")
    if isinstance(spec, (datasets.Dataset, datasets.IterableDataset)):
        return Source(spec)
    if isinstance(spec, Sequence):
        return Source(_from_list(spec, name))
    raise DataError(
        f"{name} data: a {type(spec).__name__} is no source of rows. Give a path, a Hub id, a Dataset, IterableDataset "
        "or DatasetDict, a list of dicts, or a list of (source, weight)."
    )


def _read_named(spec: str, wanted: _Wanted) -> Source:
    """Rows of a file, a folder or the Hub."""
    path = Path(spec).expanduser()
    if path.is_file() or path.is_dir():
        _refuse("config", wanted.config, path)
        _refuse("revision", wanted.revision, path)
    if path.is_file():
        _refuse_split(wanted, path)
        return Source(read_files([(path, spec if wanted.long_names else path.name)], wanted.data_cache), spec)
    if path.is_dir():
        return _from_folder(path, spec, wanted)
    if _looks_like_a_path(spec):
        raise _no_such_file(path)
    return _from_hub(spec, wanted)


def _from_folder(path: Path, label: str, wanted: _Wanted) -> Source:
    import datasets

    if is_saved_dataset(path):
        saved = read_saved(path)
        if isinstance(saved, datasets.DatasetDict):
            found = _chosen(saved, wanted.split, wanted.name, f"the data set saved in {path}")
        else:
            _refuse_split(wanted, path)
            found = Source(saved)
        numbered = _numbered(found.dataset, label if wanted.long_names else path.name)
        return Source(numbered, label, found.notes)
    folder = Folder(path)
    if list(folder.splits) == [""]:
        _refuse_split(wanted, path)
        split = ""
    else:
        split = split_name(folder.splits, wanted.split, wanted.name)
    notes = folder.notes(split)
    if len(folder.splits) > 1:
        notes = (_said_split(split, folder.splits, f"the folder {path}"), *notes)
    prefix = f"{label.rstrip('/')}/" if wanted.long_names else ""
    return Source(folder.read(split, prefix, wanted.data_cache), label, notes)


def _numbered(dataset: datasets.Dataset, source: str) -> datasets.Dataset:
    """The data set with the place of each row, where it does not say it itself."""
    if WHERE_COLUMN in dataset.column_names:
        return dataset
    return dataset.add_column(WHERE_COLUMN, places_column(source, len(dataset)))


def _chosen(splits: Mapping[Any, Any], split: str | None, name: str, whole: str) -> Source:
    wanted = split_name(splits, split, name)
    return Source(splits[wanted], notes=(_said_split(wanted, splits, whole),) if len(splits) > 1 else ())


def _said_split(split: str, splits: Mapping[Any, Any], whole: str) -> str:
    return f"The split {split!r} of {whole} is used; it has {', '.join(repr(str(key)) for key in splits)}."


def split_name(splits: Mapping[Any, Any], split: str | None, name: str) -> str:
    """The split asked for; without one the only one there is, or the one called as the rows are used.

    Rows to train on are those of `train`; rows to evaluate on those of `eval` or else `validation`.

    Raises:
        DataError: there is no such split, or several and none of that name.
    """
    known = ", ".join(f"{str(key)!r}" for key in splits)
    if split is not None:
        if split in splits:
            return split
        raise DataError(f"{name} data: there is no split {split!r}. The data set has {known}.")
    if len(splits) == 1:
        return str(next(iter(splits)))
    for wanted in (name, "validation") if name == "eval" else (name,):
        if wanted in splits:
            return wanted
    raise DataError(f"{name} data: the data set has the splits {known}. Say which one to use as {name} data.")


def _from_list(rows: Sequence[Any], name: str) -> datasets.Dataset:
    if not rows:
        raise DataError(f"{name} data: the list has no rows.")
    return dataset_of((_listed_row(row, name, number) for number, row in enumerate(rows)), with_where=False)


def _listed_row(row: Any, name: str, number: int) -> Row | Problem:
    if isinstance(row, Mapping):
        return Row(row, f"{name} data", number)
    message = f"it is a {type(row).__name__}; each row must be a dict of columns."
    return Problem("not a dict", f"{name} data, row {number}", message, excerpt(repr(row)))


def _from_hub(repository: str, wanted: _Wanted) -> Source:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    where = f"the Hub's data set {repository!r}"
    try:
        found = datasets.load_dataset(repository, wanted.config, revision=wanted.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{wanted.name} data: there is no file {repository!r} here and no data set of that name on the Hub, or it "
            f"needs permission. For a private or gated one, log in with `hf auth login`. ({error})"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise HubError(f"{where} cannot be fetched: {error}. Check the network, or give a local file.") from error
    except ValueError as error:  # configuration missing or unknown: the message lists them
        raise DataError(f"{where} cannot be read: {error}") from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(f"{where} cannot be read: {error.__cause__ or error}") from error
    chosen = _chosen(found, wanted.split, wanted.name, where)
    return Source(chosen.dataset, repository, chosen.notes)


def _looks_like_a_path(spec: str) -> bool:
    """Whether a string that names no file was meant to; a Hub id is `name` or `owner/name` without such a suffix."""
    return kind_of(Path(spec)) is not None or spec.startswith((".", "/", "~")) or spec.count("/") > 1 or "\\" in spec


def _no_such_file(path: Path) -> DataError:
    """What to say where no file is: names close to the one given, or the data files that are there."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return DataError(f"There is no file {path}: the folder {path.parent} does not exist; {folder.resolve()} does.")
    names = [entry.name for entry in folder.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if close:
        return DataError(
            f"There is no file {path}. Did you mean {' or '.join(str(folder / match) for match in close)}?"
        )
    data_files = sorted(entry for entry in names if kind_of(Path(entry)))
    there = f"its data files: {listed(data_files)}" if data_files else "no data file is there"
    return DataError(f"There is no file {path}. Looked in {folder.resolve()}; {there}.")


def _refuse_split(wanted: _Wanted, path: Path) -> None:
    """What has no splits may be asked for the one that it is used as."""
    _refuse("split", None if wanted.split == wanted.name else wanted.split, path)


def _refuse(option: str, value: str | None, path: Path) -> None:
    if value is not None:
        what = "folder" if path.is_dir() else "file"
        raise DataError(f"{option}={value!r} does not apply to the {what} {path}: it has no {option}s. Leave it out.")
