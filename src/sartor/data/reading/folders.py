"""Reads a folder of files, or a data set that was saved to one.

What comes in: a folder.  What goes out: the rows of all its data files, in the order of their names, and what to say
about files that are not read.  What it keeps true: files of one kind are read together; what is left out is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.data.reading.files import KINDS, SUFFIXES, kind_of, read_files
from sartor.errors import DataError
from sartor.wording import listed

if TYPE_CHECKING:
    import datasets

_NOT_DATA = frozenset(["config.json", "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"])
"""JSON files that stand beside data sets and are none."""
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What `datasets` takes for the name of a split where it stands in the name of a file or folder."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    """A data set, or a dictionary of splits, as it was saved.

    Raises:
        DataError: it cannot be read.
    """
    import datasets
    import pyarrow

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"The data set saved in {folder} cannot be read: {error}. Save it again.") from error


class Folder:
    """The data files of a folder, by split."""

    def __init__(self, path: Path) -> None:
        """Look at all names, down to the last folder; nothing is read yet.

        Raises:
            DataError: there is no data file, or there are several kinds.
        """
        self.path = path
        self._num_hidden = 0
        others: list[str] = []
        files: list[Path] = []
        for entry in sorted(path.rglob("*")):
            if not entry.is_file():
                continue
            inside = entry.relative_to(path)
            if any(part.startswith((".", "__")) for part in inside.parts):
                self._num_hidden += 1
            elif kind_of(entry) is None or entry.name in _NOT_DATA:
                others.append(inside.as_posix())
            else:
                files.append(entry)
        self._others = others
        self._refuse_kinds(files)
        self.splits = self._by_split(files)
        """Split to its files; one split called "" where no name says any."""

    def _refuse_kinds(self, files: Sequence[Path]) -> None:
        if not files:
            known = ", ".join(SUFFIXES)
            found = f" It has {listed(self._others)}." if self._others else ""
            raise DataError(f"The folder {self.path} has no file with {known}.{found}")
        kinds = Counter(KINDS[kind_of(file) or ""] for file in files)
        if len(kinds) > 1:
            counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
            names = [file.relative_to(self.path).as_posix() for file in files]
            raise DataError(
                f"The folder {self.path} holds files of several kinds ({counted}): which of them are rows? Give one of "
                f"its files, or a folder of one kind: {listed(names)}."
            )

    def _by_split(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        splits: dict[str, list[Path]] = {}
        for file in files:
            splits.setdefault(split_of(file.relative_to(self.path)) or "", []).append(file)
        if len(splits) > 1 and "" in splits:
            self._others += [file.relative_to(self.path).as_posix() for file in splits.pop("")]
        order = ["train", "validation", "test", ""]
        return {split: splits[split] for split in order if split in splits}

    def read(self, split: str, prefix: str = "", data_cache: str | None = None) -> datasets.Dataset:
        """All rows of a split, file by file in the order of their names.

        Args:
            split: one of `splits`.
            prefix: what stands before the files' names in their rows' places.
            data_cache: see `read_files`.
        """
        names = [prefix + file.relative_to(self.path).as_posix() for file in self.splits[split]]
        return read_files(list(zip(self.splits[split], names, strict=True)), data_cache)

    def notes(self, split: str) -> tuple[str, ...]:
        """What is read and what is not."""
        count = len(self.splits[split])
        files = f"{count:,} files" if count != 1 else "1 file"
        said = [f"{files} of the folder {self.path} are read, in the order of their names."]
        if count == 1:
            said = [f"1 file of the folder {self.path} is read: {self.splits[split][0].name}."]
        if self._num_hidden:
            said.append(f"{self._num_hidden:,} hidden files of it are not read.")
        if self._others:
            said.append(f"{len(self._others):,} other files of it are not read: {listed(self._others)}.")
        return tuple(said)


def split_of(path: Path) -> str | None:
    """The split that a file's name says, or else the folder that is closest to it; None where none does.

    Worked example: `train-00000-of-00002.parquet`, `data/train/a.jsonl` and `my_training.csv` are of `train`.
    """
    for part in reversed((*path.parts[:-1], path.name.split(".")[0])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None
