"""Where a demonstration's model goes: a folder that holds nothing yet, on a disk with room for it."""

import shutil
from pathlib import Path

from sartor.errors import RunFolderError

DEFAULT_FOLDER = Path("runs") / "demo"


def choose_folder(asked: Path | None, default: Path = DEFAULT_FOLDER) -> tuple[Path, str]:
    """The run folder and a note about it: `asked`, or `default`, or its first free numbered sibling.

    Raises RunFolderError where `asked` holds something already.
    """
    if asked is not None:
        if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
            raise RunFolderError(f"{asked} holds something already: give another --output_dir, or leave it out.")
        return asked, ""
    folder, number = default, 1
    while folder.exists():
        number += 1
        folder = default.with_name(f"{default.name}-{number}")
    note = f"{default} is there from an earlier run and stays as it is; this run goes to {folder}."
    return folder, note if number > 1 else ""


def lack_of_room(folder: Path, needed_bytes: int, need: str) -> str:
    """Where the disk that `folder` is, or will be, on has too little room: how a sentence about that begins, else "".

    Example: "the disk of runs has 5 MB free, and the weights need 10 MB", where `need` is "the weights need".
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes >= needed_bytes:
        return ""
    return f"the disk of {folder} has {free_bytes / 1e6:.0f} MB free, and {need} {needed_bytes / 1e6:.0f} MB"
