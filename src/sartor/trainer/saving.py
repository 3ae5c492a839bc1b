"""What a run leaves: models, checkpoints, and small JSON files.  No pickle is written anywhere.

A checkpoint is a folder that `from_pretrained` loads, with transformers' `trainer_state.json`.  It is written beside
its place and renamed when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from sartor.errors import RunFolderError

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer

STATE_NAME = "trainer_state.json"
PLAN_NAME = "plan.json"
DATA_NAME = "data.json"
METRICS_NAME = "metrics.jsonl"
CONFIGURATION_NAME = "sft_config.json"


def save_weights(trainer: SFTTrainer, folder: str | os.PathLike[str]) -> None:
    """Model (in the dtype it arrived in), generation config, tokenizer and template into `folder`.

    Raises:
        RunFolderError: it cannot be written, or the disk is full.
    """
    with explained(folder):
        os.makedirs(folder, exist_ok=True)
        with trainer.masters.rounded():
            trainer.model.save_pretrained(folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)


def save_checkpoint(trainer: SFTTrainer) -> str:
    """Write `checkpoint-N`, whole or not at all; returns its path.

    Raises:
        RunFolderError: it cannot be written; checkpoints that were there before are as they were.
    """
    args, state = trainer.args, trainer.state
    target = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    partial = os.path.join(args.output_dir, f"_{PREFIX_CHECKPOINT_DIR}-{state.global_step}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.store_flos()
    best_before = state.best_model_checkpoint
    try:
        with explained(target):
            trainer.save_model(partial, _internal_call=True)
            _note_best(trainer, target)
            _export_callbacks(trainer)
            state.save_to_json(os.path.join(partial, STATE_NAME))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
    except BaseException:  # an interrupt too: nothing half-written is left
        state.best_model_checkpoint = best_before
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if args.push_to_hub:
        trainer._push_from_checkpoint(target)
    rotate_checkpoints(
        output_dir=args.output_dir,
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )
    return target


def _note_best(trainer: SFTTrainer, target: str) -> None:
    """Point the state at the checkpoint of the best metric, which may be the one being written."""
    state = trainer.state
    if not state.best_global_step:
        return
    best = os.path.join(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
    if best == target or os.path.exists(best):
        state.best_model_checkpoint = best


def _export_callbacks(trainer: SFTTrainer) -> None:
    """Write the state of callbacks that have one into the trainer's state, as transformers' Trainer does."""
    stateful = trainer.state.stateful_callbacks
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if not isinstance(callback, ExportableState):
            continue
        name = type(callback).__name__
        if isinstance(stateful.get(name), list):
            stateful[name].append(callback.state())
        else:
            stateful[name] = callback.state()


def drop_all_but_best(trainer: SFTTrainer) -> None:
    """Delete the last checkpoint where only the best may stay, as transformers' Trainer does when training ends."""
    best = trainer.state.best_model_checkpoint
    if best is None or trainer.args.save_total_limit != 1:
        return
    for checkpoint in sort_checkpoints(output_dir=trainer.args.output_dir, best_model_checkpoint=best):
        if not os.path.samefile(checkpoint, best):
            trainer.say(f"{checkpoint} is deleted: save_total_limit=1, and {best} is the best.")
            shutil.rmtree(checkpoint, ignore_errors=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that people read.

    Raises:
        RunFolderError: it cannot be written.
    """
    with explained(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """See that a run folder can be written, making it if need be.

    Raises:
        RunFolderError: it cannot.
    """
    with explained(folder):
        os.makedirs(folder, exist_ok=True)
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
        raise RunFolderError(_explanation(_shown(path), error)) from error


def _shown(path: str | os.PathLike[str]) -> str:
    """A path as people know it: a checkpoint's place, not where it is being written."""
    return re.sub(rf"_({PREFIX_CHECKPOINT_DIR}-\d+)\.partial", r"\1", os.fspath(path))


def _explanation(path: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    number = error.errno if isinstance(error, OSError) else None
    # safetensors writes from Rust, which has the number in its text alone.
    is_full = number == errno.ENOSPC or "os error 28" in reason
    is_limited = number in (errno.EDQUOT, errno.EFBIG) or "os error 122" in reason or "os error 27" in reason
    if is_full or is_limited:
        what = "no space left on the disk" if is_full else "a quota or size limit is reached"
        return (
            f"{what}: {path} cannot be written. Make room, set save_total_limit or save_strategy='no', or choose "
            "another output_dir. Checkpoints that were already saved are not touched."
        )
    return f"{path} cannot be written: {reason}. Choose another output_dir, or see to its permissions."
