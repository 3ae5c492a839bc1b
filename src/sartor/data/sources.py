"""Finds and reads a source of rows: a file, a data set of the Hub, or one that is in memory already.

What comes in: a path, a Hub id, a data set or a list of dicts.  What goes out: a `datasets.Dataset` or
`IterableDataset`, rows in the order in which they stand there.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.files import SUFFIXES, kind_of, read_file
from sartor.data.problems import ProblemLog
from sartor.data.tables import dataset_of
from sartor.errors import DataError, HubError
from sartor.records import Row

if TYPE_CHECKING:
    import datasets


def load(
    spec: object,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    name: str = "train",
) -> datasets.Dataset | datasets.IterableDataset:
    """Read a source of rows.

    Args:
        spec: the path of a file (JSON lines, JSON, CSV or Parquet by its suffix; `.gz` may follow), a Hub id, a
            `Dataset`, `IterableDataset`, `DatasetDict` or `IterableDatasetDict`, or a list of dicts.
        split: which part of a source that has several; without it the only one, or the one called `name`.
        config: the Hub data set's configuration.
        revision: branch, tag or commit of a Hub data set.
        name: what the rows are for, `train` or `eval`; messages use it.

    Raises:
        DataError: no such file (names what is near it), no such data set or split, rows that cannot be read.
        HubError: the Hub cannot be reached.
    """
    import datasets

    if isinstance(spec, (str, os.PathLike)):
        path = Path(spec).expanduser()
        if path.is_file():
            _refuse("split", None if split == name else split, path)
            _refuse("config", config, path)
            return read_file(path)
        if path.is_dir() or _looks_like_a_path(os.fspath(spec)):
            raise _no_such_file(path)
        return _from_hub(os.fspath(spec), split, config, revision, name)
    if isinstance(spec, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return choose_split(spec, split, name)
    if isinstance(spec, (datasets.Dataset, datasets.IterableDataset)):
        return spec
    if isinstance(spec, Sequence):
        return _from_list(spec, name)
    raise DataError(
        f"{name} data: a {type(spec).__name__} is no source of rows. Give a path, a Hub id, a Dataset, IterableDataset "
        "or DatasetDict, or a list of dicts."
    )


def choose_split(splits: Mapping[Any, Any], split: str | None, name: str) -> Any:
    """The split asked for; without one the only one there is, or the one called as the rows are used (`train`).

    Raises:
        DataError: there is no such split, or several and none of that name.
    """
    known = ", ".join(f"{key!r}" for key in splits)
    wanted = next(iter(splits)) if split is None and len(splits) == 1 else split or name
    if wanted in splits:
        return splits[wanted]
    if split is None:
        raise DataError(f"{name} data: the data set has the splits {known}. Say which one to use as {name} data.")
    raise DataError(f"{name} data: there is no split {split!r}. The data set has {known}.")


def _from_list(rows: Sequence[Any], name: str) -> datasets.Dataset:
    problems = ProblemLog()
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            message = f"it is a {type(row).__name__}; each row must be a dict of columns."
            problems.add("not a dict", f"{name} data, row {number}", message, repr(row))
    problems.raise_if_any(f"{name} data", len(rows))
    if not rows:
        raise DataError(f"{name} data: the list has no rows.")
    return dataset_of((Row(row, f"{name} data", number) for number, row in enumerate(rows)), with_where=False)


def _from_hub(
    repository: str, split: str | None, config: str | None, revision: str | None, name: str
) -> datasets.Dataset | datasets.IterableDataset:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    where = f"the Hub's data set {repository!r}"
    try:
        found = datasets.load_dataset(repository, config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{name} data: there is no file {repository!r} here and no data set of that name on the Hub, or it needs "
            f"permission. For a private or gated one, log in with `hf auth login`. ({error})"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise HubError(f"{where} cannot be fetched: {error}. Check the network, or give a local file.") from error
    except ValueError as error:  # configuration missing or unknown: the message lists them
        raise DataError(f"{where} cannot be read: {error}") from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(f"{where} cannot be read: {error.__cause__ or error}") from error
    return choose_split(found, split, name)


def _looks_like_a_path(spec: str) -> bool:
    """Whether a string that names no file was meant to; a Hub id is `name` or `owner/name` without such a suffix."""
    return kind_of(Path(spec)) is not None or spec.startswith((".", "/", "~")) or spec.count("/") > 1 or "\\" in spec


def _no_such_file(path: Path) -> DataError:
    """What to say where no file is: a folder's data files, or names close to the one given."""
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if kind_of(entry))
        hint = f"Give one of its files: {_listed(files)}." if files else f"It has no file with {', '.join(SUFFIXES)}."
        return DataError(f"{path} is a folder. {hint}")
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
    there = f"its data files: {_listed(data_files)}" if data_files else "no data file is there"
    return DataError(f"There is no file {path}. Looked in {folder.resolve()}; {there}.")


def _listed(names: Sequence[str], at_most: int = 8) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _refuse(option: str, value: str | None, path: Path) -> None:
    if value is not None:
        raise DataError(f"{option}={value!r} does not apply to the file {path}: it has no {option}s. Leave it out.")
