"""What a run leaves: models, checkpoints, and small JSON files.  No pickle is written anywhere.

A checkpoint is a folder that `from_pretrained` loads, with transformers' `trainer_state.json`; `checkpoints.py` makes
them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sartor.engine.precision import Masters
from sartor.errors import DiskFullError, RunFolderError
from sartor.masking import is_secret, masked
from sartor.report import staging
from sartor.report.files import share_weights
from sartor.run import checkpoint

STATE_NAME = "trainer_state.json"
PLAN_NAME = "plan.json"
DATA_NAME = "data.json"
METRICS_NAME = "metrics.jsonl"
CONFIGURATION_NAME = "sft_config.json"
_FRESH_PREFIX = ".saving-"
MAKE_ROOM = (
    "Make room, set save_total_limit or save_strategy='no', or choose another output_dir. Checkpoints that were "
    "already saved are not touched."
)


def save_model_alone(model: Any, masters: Masters, folder: str | os.PathLike[str]) -> None:
    """Model (in the dtype it arrived in) and generation config into `folder`.

    Raises:
        RunFolderError: it cannot be written, or the disk is full.
    """
    with explained(folder):
        os.makedirs(folder, exist_ok=True)
        with masters.rounded():
            model.save_pretrained(folder)
        share_weights(folder)


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Tokenizer and template into `folder`.

    Raises:
        RunFolderError: it cannot be written, or the disk is full.
    """
    with explained(folder):
        os.makedirs(folder, exist_ok=True)
        if tokenizer is not None:
            with _masked_arguments(tokenizer):
                tokenizer.save_pretrained(folder)


@contextmanager
def _masked_arguments(tokenizer: Any) -> Iterator[None]:
    """While a tokenizer is saved, the arguments it was loaded with, which it writes down, hold no secrets.

    Names that end in `_token` are its special tokens, for transformers as well.
    """
    given = tokenizer.init_kwargs
    tokenizer.init_kwargs = masked(given, lambda name: is_secret(name) and not name.endswith("_token"))
    try:
        yield
    finally:
        tokenizer.init_kwargs = given


def save_anew(folder: Path, save: Callable[[Path], None]) -> set[str]:
    """Save a model into the run folder; returns the names of the files that this has written.

    They are written into a folder of their own first, so that nothing which lies in the run folder from another run
    is among them.  The weights of a whole model then take the place of those that were there: an index would be read
    with a stale file beside it.

    Raises:
        RunFolderError: it cannot be written, the disk is full, or `save_model` wrote no weights where it was told.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=_FRESH_PREFIX, dir=folder))
        try:
            save(fresh)
            made = staging.names_in(fresh)
            if not any(name.endswith(".safetensors") for name in made):
                raise RunFolderError(f"save_model(output_dir) wrote no weights (*.safetensors) into {fresh}.")
            for name in sorted(made):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(fresh / name, folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if any(fnmatchcase(name, pattern) for name in made for pattern in staging.WHOLE_WEIGHTS):
            for path in [path for pattern in staging.WHOLE_WEIGHTS for path in folder.glob(pattern)]:
                if path.name not in made:
                    path.unlink()
    return made


def drop_all_but(best: str, folder: Path, say: Callable[[str], None]) -> None:
    """Delete the checkpoints of a folder but the best, where only that may stay, as Trainer does when training ends."""
    if not os.path.isdir(best):
        return
    for path in checkpoint.in_order(folder):
        if not os.path.samefile(path, best):
            say(f"{path} is deleted: save_total_limit=1, and {best} is the best.")
            checkpoint.delete(path)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that people read; secrets in it are masked.

    Raises:
        RunFolderError: it cannot be written.
    """
    with explained(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(masked(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """See that a run folder can be written, making it if need be.

    Raises:
        RunFolderError: it cannot.
    """
    with explained(folder):
        os.makedirs(folder, exist_ok=True)
        for name in (PLAN_NAME, DATA_NAME, METRICS_NAME, CONFIGURATION_NAME):
            if (path := Path(folder) / name).is_symlink() or (path.exists() and not path.is_file()):
                raise RunFolderError(
                    f"{path} is a link, or no file: what a run writes there would go elsewhere. Delete it, or choose "
                    "another output_dir."
                )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(folder))


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system refuses in this block into one error that says what to do.

    Raises:
        RunFolderError: in place of an OSError, or of safetensors' own error for one.
    """
    try:
        yield
    except RunFolderError:
        raise
    except (OSError, SafetensorError) as error:
        kind, text = _explanation(_shown(path), error)
        raise kind(text) from error


def _shown(path: str | os.PathLike[str]) -> str:
    """A path as people know it: a checkpoint's or a model's place, not where it is being written."""
    shown = re.sub(rf"_({checkpoint.PREFIX}\d+)\.partial", r"\1", os.fspath(path))
    return re.sub(rf"[/\\]{re.escape(_FRESH_PREFIX)}\w+", "", shown)


def _explanation(path: str, error: Exception) -> tuple[type[RunFolderError], str]:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    number = error.errno if isinstance(error, OSError) else None
    # safetensors writes from Rust, which has the number in its text alone.
    is_full = number == errno.ENOSPC or "os error 28" in reason
    is_limited = number in (errno.EDQUOT, errno.EFBIG) or "os error 122" in reason or "os error 27" in reason
    if is_full or is_limited:
        what = "no space left on the disk" if is_full else "a quota or size limit is reached"
        return DiskFullError, f"{what}: {path} cannot be written. {MAKE_ROOM}"
    return RunFolderError, f"{path} cannot be written: {reason}. Choose another output_dir, or see to its permissions."
