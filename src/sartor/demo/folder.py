"""Where a demonstration's model goes: a folder that holds nothing yet."""

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
