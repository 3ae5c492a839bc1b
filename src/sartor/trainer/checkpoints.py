"""The checkpoints of one `train()`: what is in them, and writing them while training goes on.

The model's folder is written at once, through `trainer.save_model`, which users may override.  Masters, optimizer and
all other state are copied, and written, checksummed and brought to the disk by a thread, unless that copy does not
fit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import ExportableState, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from sartor.config import resolved_configuration
from sartor.engine.step import Engine
from sartor.errors import DiskFullError, RunFolderError
from sartor.memory.device import available_bytes
from sartor.run import checkpoint, state
from sartor.run.stepper import Updater
from sartor.trainer import saving
from sartor.trainer.fingerprints import fingerprints, versions

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer

_COPY_MARGIN = 1.25
"""Free memory for each byte of a copy; training must not run out because of it."""
_ADAM_BYTES = 8
"""Of optimizer state for each trained parameter, where it is not known yet: two float32 moments."""


class Checkpoints:
    """Saves the state of one run."""

    def __init__(self, trainer: SFTTrainer, engine: Engine, updater: Updater, drive_state: Callable[[], Any]) -> None:
        self._trainer = trainer
        self._engine = engine
        self._updater = updater
        self._drive_state = drive_state
        self._writer = checkpoint.Writer()
        self._fingerprints: dict[str, str] | None = None
        self._said_foreground = False
        self.num_failed = 0
        """Checkpoints that did not fit on the disk, where the run goes on without them."""

    def save(self) -> str:
        """Write `checkpoint-N`, whole or not at all; returns its path, which may still be on its way to the disk.

        Raises:
            RunFolderError: it cannot be written; checkpoints that were there before are as they were.
            ConfigurationError: the state of optimizer or schedule cannot be written without pickle.
        """
        trainer = self._trainer
        args, run = trainer.args, trainer.state
        self._writer.wait()
        target = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{run.global_step}"
        partial = checkpoint.partial_path(target)
        shutil.rmtree(partial, ignore_errors=True)
        trainer.store_flos()
        best_before = run.best_model_checkpoint
        try:
            with saving.explained(target):
                content = None if args.save_only_model else self._content()
                self._require_space(target, content)
                trainer.save_model(str(partial), _internal_call=True)
                _note_best(trainer, target)
                _export_callbacks(trainer)
                run.save_to_json(str(partial / saving.STATE_NAME))
            in_background = args.save_in_background and self._fits(content)
            if in_background and content is not None:
                content = checkpoint.snapshot(content)
        except BaseException:  # an interrupt too: nothing half-written is left
            run.best_model_checkpoint = best_before
            shutil.rmtree(partial, ignore_errors=True)
            raise
        best = run.best_model_checkpoint

        def finish() -> None:
            try:
                with saving.explained(target):
                    if content is not None:
                        checkpoint.write_state(partial, _without_saved(content, partial))
                    checkpoint.seal(partial)
                    checkpoint.publish(partial, target)
            except BaseException:
                run.best_model_checkpoint = best_before
                shutil.rmtree(partial, ignore_errors=True)
                raise
            for folder in checkpoint.superfluous(target.parent, args.save_total_limit, Path(best) if best else None):
                checkpoint.delete(folder)

        if in_background:
            self._writer.start(finish)
        else:
            finish()
        if args.push_to_hub or _somebody_listens(trainer):
            self._writer.wait()
        if args.push_to_hub:
            trainer._push_from_checkpoint(str(target))
        return str(target)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        self._writer.check()

    def wait(self) -> None:
        """Until what was begun is on the disk; raises what went wrong."""
        self._writer.wait()

    def settle(self) -> None:
        """Until what was begun is done, when a run ends in whatever way; what goes wrong is said."""
        try:
            self._writer.wait()
        except Exception as error:
            self._trainer.say(f"the last checkpoint could not be saved: {error}")

    def prepare(self) -> None:
        """What can be known before the first step: that the disk has room, and that what is there can be written.

        Raises:
            DiskFullError: there is too little room for the checkpoints of this run.
        """
        trainer, args = self._trainer, self._trainer.args
        if args.save_strategy == SaveStrategy.NO:
            return
        if not args.save_only_model:
            self._fingerprints = fingerprints(trainer)
        each = self._foreseen_bytes()
        count = _num_kept(args, trainer.state)
        free = shutil.disk_usage(args.output_dir).free
        if each * count <= free:
            return
        text = (
            f"the checkpoints of this run need about {_gigabytes(each * count)} ({count} of {_gigabytes(each)} at "
            "a time), "
            f"and the disk of {args.output_dir} has {_gigabytes(free)}: set save_total_limit, save less often, set "
            "save_only_model=True, or choose another output_dir"
        )
        if args.on_full_disk == "stop":
            raise DiskFullError(f"{text}; on_full_disk='continue' trains on when it is full.")
        trainer.say(f"{text}. The run goes on without the checkpoints that do not fit (on_full_disk='continue').")

    def check_state(self) -> None:
        """After the first step, when an optimizer has its state: see that it can be written.

        Raises:
            ConfigurationError: it cannot, without pickle.
        """
        args = self._trainer.args
        if args.save_strategy != SaveStrategy.NO and not args.save_only_model:
            self._pack_all()

    def _pack_all(self) -> None:
        optimizer, scheduler = self._trainer.optimizer, self._trainer.lr_scheduler
        state.pack(optimizer.state_dict(), f"the state of the optimizer {type(optimizer).__name__}")
        state.pack(scheduler.state_dict(), f"the state of the schedule {type(scheduler).__name__}")

    def _content(self) -> dict[str, Any]:
        """Everything that a run is, besides the model's folder and `trainer_state.json`; tensors are the live ones."""
        trainer = self._trainer
        if self._fingerprints is None:
            self._fingerprints = fingerprints(trainer)
        self._pack_all()
        persistent = trainer.model.state_dict().keys()
        return {
            "parameters": {
                name: parameter.detach()
                for name, parameter in trainer.model.named_parameters()
                if parameter.requires_grad
            },
            "buffers": {name: value for name, value in trainer.model.named_buffers() if name in persistent},
            "optimizer": trainer.optimizer.state_dict(),
            "optimizer_class": type(trainer.optimizer).__name__,
            "schedule": trainer.lr_scheduler.state_dict(),
            "updater": self._updater.state(),
            **self._drive_state(),
            "plan": json.loads(json.dumps(dataclasses.asdict(self._engine.plan))),
            "fingerprints": self._fingerprints,
            "settings": resolved_configuration(trainer.args),
            "versions": versions(),
        }

    def _fits(self, content: Mapping[str, Any] | None) -> bool:
        """Whether memory has room for a copy."""
        needed = checkpoint.num_bytes(content) * _COPY_MARGIN
        free = available_bytes(torch.device("cpu"))
        if needed <= free:
            return True
        if not self._said_foreground:
            self._said_foreground = True
            self._trainer.say(
                f"checkpoints are written while training waits: a copy of the state needs {_gigabytes(needed)}, and "
                f"{_gigabytes(free)} of memory are free."
            )
        return False

    def _require_space(self, target: Path, content: Mapping[str, Any] | None) -> None:
        needed = self._weights_bytes() + checkpoint.num_bytes(content)
        if content is not None and all(dtype == torch.float32 for dtype in self._saved_dtypes()):
            needed -= checkpoint.num_bytes(content["parameters"])  # saved with the weights
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise DiskFullError(
                f"no space left on the disk: {target} cannot be written. It needs {_gigabytes(needed)}, and "
                f"{_gigabytes(free)} are free. {saving.MAKE_ROOM}"
            )

    def _foreseen_bytes(self) -> int:
        """Of one checkpoint, before the optimizer has any state."""
        weights = self._weights_bytes()
        if self._trainer.args.save_only_model:
            return weights
        trained = [parameter for parameter in self._trainer.model.parameters() if parameter.requires_grad]
        masters = sum(parameter.nbytes for parameter in trained if self._saved_dtype(parameter) != parameter.dtype)
        known = checkpoint.num_bytes(self._trainer.optimizer.state_dict())
        moments = 0 if isinstance(self._trainer.optimizer, torch.optim.SGD) else _ADAM_BYTES
        return weights + masters + (known or moments * sum(parameter.numel() for parameter in trained))

    def _weights_bytes(self) -> int:
        """Of the model's folder: adapters alone where there is one."""
        from peft import PeftModel

        model = self._trainer.model
        alone = isinstance(model, PeftModel)
        return sum(
            parameter.numel() * self._saved_dtype(parameter).itemsize
            for parameter in model.parameters()
            if parameter.requires_grad or not alone
        )

    def _saved_dtype(self, parameter: torch.nn.Parameter) -> torch.dtype:
        return self._trainer.masters.arrival_dtype(parameter)

    def _saved_dtypes(self) -> set[torch.dtype]:
        return {self._saved_dtype(p) for p in self._trainer.model.parameters() if p.requires_grad}


def saved_tensors(folder: Path) -> dict[str, Path]:
    """Name of each tensor in the model's files of a checkpoint, and the file it is in."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _without_saved(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`content` without the parameters that the model's own files hold, bit for bit and under the same name."""
    from safetensors import safe_open

    places = saved_tensors(folder)
    left = dict(content["parameters"])
    for path in set(places.values()):
        with safe_open(path, "pt") as file:
            for name in [name for name in left if places.get(name) == path]:
                if _same_bits(file.get_tensor(name), left[name]):
                    del left[name]
    saved = [name for name in content["parameters"] if name not in left]
    return {**content, "parameters": left, "saved_parameters": saved}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))


def _somebody_listens(trainer: SFTTrainer) -> bool:
    """Whether a callback reacts to a checkpoint: then it must be there when it is called."""
    return any(type(callback).on_save is not TrainerCallback.on_save for callback in trainer.callback_handler.callbacks)


def _note_best(trainer: SFTTrainer, target: Path) -> None:
    """Point the state at the checkpoint of the best metric, which may be the one being written."""
    run = trainer.state
    if not run.best_global_step:
        return
    best = target.with_name(f"{PREFIX_CHECKPOINT_DIR}-{run.best_global_step}")
    if best == target or best.exists():
        run.best_model_checkpoint = os.fspath(best)


def _export_callbacks(trainer: SFTTrainer) -> None:
    """Write the state of callbacks that have one into the trainer's state, as transformers' Trainer does."""
    exported = callback_states(trainer)
    stateful = trainer.state.stateful_callbacks
    for name, states in exported.items():
        stateful[name] = states if len(states) > 1 else states[0]


def callback_states(trainer: SFTTrainer) -> dict[str, list[dict[str, Any]]]:
    """The states of callbacks that have one, and of the control, by the names of their classes, in order."""
    states: dict[str, list[dict[str, Any]]] = {}
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    return states


def restore_callbacks(trainer: SFTTrainer, states: Mapping[str, Any]) -> None:
    """Give callbacks the attributes that `callback_states` saw, those of one class in their order."""
    turns = {name: iter(part if isinstance(part, list) else [part]) for name, part in states.items()}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            found: Mapping[str, Any] = next(turns.get(type(callback).__name__, iter(())), {})
            for name, value in found.get("attributes", {}).items():
                setattr(callback, name, value)


def _num_kept(args: Any, run: Any) -> int:
    """How many checkpoints lie on the disk at once, at most: the new one is there before the oldest goes."""
    if args.save_strategy == SaveStrategy.STEPS:
        total = math.ceil(run.max_steps / max(run.save_steps or 1, 1))
    else:
        total = math.ceil(run.num_train_epochs)
    limit = args.save_total_limit
    return max(1, min(total, limit + 1 if limit and limit > 0 else total))


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def require_stoppable(error: Exception, trainer: SFTTrainer) -> None:
    """Let the run go on after a checkpoint that did not fit, where the user wants that.

    Raises:
        Exception: `error`, where the run must stop.
    """
    if not isinstance(error, DiskFullError) or trainer.args.on_full_disk != "continue":
        raise error
    trainer.say(f"{error} The run goes on without it (on_full_disk='continue').")


def interrupted_save(trainer: SFTTrainer, save: Callable[[], None]) -> None:
    """Save because of an interrupt, and say how to go on; the interrupt is what the caller must see in any case."""
    try:
        save()
    except RunFolderError as error:
        trainer.say(f"interrupted, and nothing could be saved: {error}")
    else:
        trainer.say(
            f"interrupted: checkpoint-{trainer.state.global_step} is saved in {trainer.args.output_dir}. Go on with "
            "train(resume_from_checkpoint=True), or with the same command and --resume."
        )
