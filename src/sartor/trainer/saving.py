"""What a run leaves: models, checkpoints, the card, and what goes to the Hub.  No pickle is written anywhere.

A checkpoint is a folder that `from_pretrained` loads, with transformers' `trainer_state.json`.  It is written beside
its place and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from sartor.errors import RunFolderError

STATE_NAME = "trainer_state.json"
PLAN_NAME = "plan.json"
METRICS_NAME = "metrics.jsonl"
CONFIGURATION_NAME = "sft_config.json"


def save_weights(trainer: Any, folder: str | os.PathLike[str]) -> None:
    """Model (in the dtype it arrived in), generation config, tokenizer and template into `folder`.

    Raises:
        RunFolderError: it cannot be written, or the disk is full.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with trainer.masters.rounded():
            trainer.model.save_pretrained(folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
    except (OSError, RuntimeError) as error:
        raise _explained(folder, error) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # safetensors' own class for what the system refused
            raise _explained(folder, error) from error
        raise


def save_checkpoint(trainer: Any) -> str:
    """Write `checkpoint-N`, whole or not at all; returns its path."""
    args, state = trainer.args, trainer.state
    target = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    partial = os.path.join(args.output_dir, f"_{PREFIX_CHECKPOINT_DIR}-{state.global_step}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.store_flos()
    try:
        trainer.save_model(partial, _internal_call=True)
        _note_best(trainer, target)
        _export_callbacks(trainer)
        state.save_to_json(os.path.join(partial, STATE_NAME))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, RunFolderError) else _explained(target, error) from error
    if args.push_to_hub:
        trainer._push_from_checkpoint(target)
    rotate_checkpoints(
        output_dir=args.output_dir,
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )
    return target


def _note_best(trainer: Any, target: str) -> None:
    """Point the state at the checkpoint of the best metric, which may be the one being written."""
    state = trainer.state
    if not state.best_global_step:
        return
    best = os.path.join(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
    if best == target or os.path.exists(best):
        state.best_model_checkpoint = best


def _export_callbacks(trainer: Any) -> None:
    """Write the state of callbacks that have one into the trainer's state, as transformers' Trainer does."""
    stateful = trainer.state.stateful_callbacks
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if not isinstance(callback, ExportableState):
            continue
        name = type(callback).__name__
        if isinstance(stateful[name], list):
            stateful[name].append(callback.state())
        else:
            stateful[name] = callback.state()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that people read.

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise _explained(path, error) from error


def _explained(path: str | os.PathLike[str], error: BaseException) -> RunFolderError:
    """An error that says what to do."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number == 28 or "No space left" in text or "os error 28" in text:
        return RunFolderError(
            f"no space left on the disk for {os.fspath(path)}: free some, set save_total_limit or "
            "save_strategy='no', or choose another "
            "output_dir. Nothing that was already saved is lost."
        )
    return RunFolderError(f"{os.fspath(path)} cannot be written: {text}")


def drop_all_but_best(trainer: Any) -> None:
    """With `save_total_limit=1` and a best checkpoint, the last one is deleted at the end, as transformers' Trainer
    does.
    """
    from transformers.trainer_utils import sort_checkpoints

    best = trainer.state.best_model_checkpoint
    if best is None or trainer.args.save_total_limit != 1:
        return
    for checkpoint in sort_checkpoints(output_dir=trainer.args.output_dir, best_model_checkpoint=best):
        if not os.path.samefile(checkpoint, best):
            trainer.say(f"{checkpoint} is deleted: save_total_limit=1, and {best} is the best.")
            shutil.rmtree(checkpoint, ignore_errors=True)
