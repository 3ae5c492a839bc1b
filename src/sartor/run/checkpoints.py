"""The checkpoints of one `train()`: what is in them, and writing them while training goes on.

A thread writes it from the live tensors, which nobody changes before the next optimizer step; whoever steps says so
before (`secure`), and what was not read by then is copied, or waited for.  The model's own files are the thread's too,
but for adapters, which are small, and for those that are saved in a way of the user's own (see `draft`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import ExportableState, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from sartor.config import resolved_configuration
from sartor.device import HOST
from sartor.engine.step import Engine
from sartor.errors import DiskFullError, RunFolderError, is_out_of_memory
from sartor.memory.limits import available_bytes
from sartor.run import checked_state, checkpoint, checkpoint_writer, disk, saving, state
from sartor.run.fingerprints import fingerprints, frozen_digests, versions
from sartor.run.snapshot import Snapshot, Writer
from sartor.run.stepper import Updater
from sartor.wording import amount

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer

_COPY_MARGIN = 1.25
"""Free memory for each byte of a copy; training must not run out because of it."""
_BETWEEN_STEPS = (
    "on_epoch_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_epoch_end", "on_evaluate",
    "on_prediction_step",
)  # fmt: skip
"""Events after a save and before the next optimizer step."""


class Checkpoints:
    """Saves the state of one run."""

    def __init__(
        self, trainer: SFTTrainer, engine: Engine, updater: Updater, train_loop_state: Callable[[], Any], run: int
    ) -> None:
        """Args:
        trainer: of the run.
        engine: that computes it.
        updater: that steps it.
        drive_state: gives the place in the run.
        run: its number among the runs of its folder.
        """
        self._trainer = trainer
        self.run = run
        self._engine = engine
        self._updater = updater
        self._drive_state = train_loop_state
        self._writer = Writer()
        self._lent: Snapshot | None = None
        self._identity: dict[str, dict[str, str]] | None = None
        """What the run is, in digests, which are taken once."""
        self._has_said_room = False
        self.pushes = True
        """Whether a checkpoint is pushed, where the user wants that."""
        self.num_saved = 0
        self.waited_s = 0.0
        """That training has waited for checkpoints, all together."""
        self.waited_in_steps_s = 0.0
        """Of it, before optimizer steps."""
        updater.before_step = self.secure

    def save(self) -> str:
        """Write `checkpoint-N`, whole or not at all; returns its path, which may still be on its way to the disk.

        Raises:
            RunFolderError: it cannot be written; checkpoints that were there before are as they were.
            ConfigurationError: the state of optimizer or schedule cannot be written without pickle.
        """
        with self._waiting():
            self._writer.wait()
            path = self._save()
        self.num_saved += 1
        return path

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Training waits while the block lasts."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._count_waited(time.perf_counter() - started)

    def _count_waited(self, seconds: float) -> None:
        self.waited_s += seconds
        if self._trainer.metrics_writer is not None:
            self._trainer.metrics_writer.saving_waited(seconds)

    def _save(self) -> str:
        trainer = self._trainer
        args, run = trainer.args, trainer.state
        target = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{run.global_step}"
        partial = checkpoint.partial_path(target)
        if partial.is_symlink():
            raise RunFolderError(
                f"{partial} is a link to {os.readlink(partial)}: a checkpoint that is written there would overwrite "
                "what it leads to. Delete the link."
            )
        shutil.rmtree(partial, ignore_errors=True)
        trainer.store_flos()
        best_before = run.best_model_checkpoint
        lends = args.save_in_background and not _somebody_may_change(trainer)
        try:
            with saving.explained(target):
                content = None if args.save_only_model else self._content()
                disk.require_room(trainer, target, content)
                begun = checkpoint_writer.begin(trainer, partial, content, is_lent=lends)
                self._note_best(target)
                _export_callbacks(trainer)
                run.save_to_json(str(partial / saving.STATE_NAME))
        except BaseException:  # an interrupt too: nothing half-written is left
            run.best_model_checkpoint = best_before
            shutil.rmtree(partial, ignore_errors=True)
            raise
        best = run.best_model_checkpoint

        def finish() -> None:
            try:
                with saving.explained(target):
                    checkpoint.seal(partial, begun.write_rest(), run=self.run)
                    checkpoint.publish(partial, target)
            except BaseException:
                run.best_model_checkpoint = best_before
                shutil.rmtree(partial, ignore_errors=True)
                raise
            finally:
                begun.end()
            for folder in checkpoint.superfluous(target, args.save_total_limit, Path(best) if best else None):
                checkpoint.delete(folder)

        self._lent = None if begun.packed is None else begun.packed.tensors
        if args.save_in_background:
            self._writer.start(finish)
            if not lends:
                self._secure()
        else:
            finish()
        if args.push_to_hub or _somebody_listens(trainer):
            self._writer.wait()
        if args.push_to_hub and self.pushes:
            trainer._push_from_checkpoint(str(target))
        return str(target)

    def _note_best(self, target: Path) -> None:
        """Point the state at this run's checkpoint of the best metric, which may be the one being written."""
        state = self._trainer.state
        if not state.best_global_step:
            return
        best = target.with_name(f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
        if best == target or checkpoint.run_of(best) == self.run:
            state.best_model_checkpoint = os.fspath(best)

    def secure(self) -> None:
        """Before parameters or the optimizer's states change: see that no checkpoint needs them as they are."""
        waited = self._secure()
        self._count_waited(waited)
        self.waited_in_steps_s += waited

    def _secure(self) -> float:
        if self._lent is None:
            return 0.0
        waited = self._lent.secure(self._has_room)
        self._lent = None
        return waited

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        self._writer.check()

    def wait(self) -> None:
        """Until what was begun is on the disk; raises what went wrong."""
        with self._waiting():
            self._writer.wait()

    def tell(self) -> None:
        """At the end of a run: what saving has cost it."""
        if self.num_saved:
            self._trainer.say(
                f"checkpoints saved: {self.num_saved}; training has waited {self.waited_s:.2f} s for them, "
                f"{self.waited_in_steps_s:.2f} s of it before optimizer steps."
            )

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
            self._identify()
        disk.require_room_for_run(trainer)

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
            **self._identify(),
            "settings": resolved_configuration(trainer.args),
            "versions": versions(),
        }

    def _identify(self) -> dict[str, dict[str, str]]:
        if self._identity is None:
            trainer = self._trainer
            self._identity = {"fingerprints": fingerprints(trainer), "frozen": frozen_digests(trainer.model)}
        return self._identity

    def _has_room(self, lent_bytes: int) -> bool:
        """Whether memory has room for a copy of what the thread has not read yet."""
        needed = lent_bytes * _COPY_MARGIN
        free = available_bytes(torch.device(HOST))
        if needed <= free:
            return True
        if not self._has_said_room:
            self._has_said_room = True
            self._trainer.say(
                "training waits for a checkpoint to be written: a copy of the rest needs "
                f"{amount(needed, 1)}, and "
                f"{amount(free, 1)} of memory are free."
            )
        return False


def _somebody_listens(trainer: SFTTrainer) -> bool:
    """Whether a callback reacts to a checkpoint: then it must be there when it is called."""
    return any(_overrides(callback, "on_save") for callback in trainer.callback_handler.callbacks)


def _somebody_may_change(trainer: SFTTrainer) -> bool:
    """Whether a callback of the user's own is called before the next optimizer step: it may change weights."""
    return any(
        not type(callback).__module__.startswith(("transformers.", "sartor."))
        and any(_overrides(callback, event) for event in _BETWEEN_STEPS)
        for callback in trainer.callback_handler.callbacks
    )


def _overrides(callback: TrainerCallback, event: str) -> bool:
    return event in vars(callback) or getattr(type(callback), event) is not getattr(TrainerCallback, event)


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


def check_callbacks(trainer: SFTTrainer, states: Mapping[str, Any]) -> None:
    """See that callbacks have the attributes that they would be given, and that these are of their kind.

    Raises:
        DamagedError: one has not; names it.
    """
    for name, present in callback_states(trainer).items():
        part = states.get(name, [])
        for number, (found, own) in enumerate(zip(part if isinstance(part, list) else [part], present, strict=False)):
            for key, value in found.get("attributes", {}).items():
                place = f"/stateful_callbacks/{name}/{number}/{key}"
                if key not in own.get("attributes", {}):
                    raise checkpoint.DamagedError(f"{place} is nothing that this callback has")
                if isinstance(own["attributes"][key], bool | int | float):
                    checked_state.like(value, own["attributes"][key], place)


def restore_callbacks(trainer: SFTTrainer, states: Mapping[str, Any]) -> None:
    """Give callbacks the attributes that `callback_states` saw, those of one class in their order."""
    turns = {name: iter(part if isinstance(part, list) else [part]) for name, part in states.items()}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            found: Mapping[str, Any] = next(turns.get(type(callback).__name__, iter(())), {})
            for name, value in found.get("attributes", {}).items():
                setattr(callback, name, value)


def require_stoppable(error: Exception, trainer: SFTTrainer) -> None:
    """Let the run go on after a checkpoint that did not fit, where the user wants that.

    Raises:
        Exception: `error`, where the run must stop.
    """
    if not isinstance(error, DiskFullError) or trainer.args.on_full_disk != "continue":
        raise error
    trainer.say(f"{error} The run goes on without it (on_full_disk='continue').")


def interrupted_save(trainer: SFTTrainer, save: Callable[[], None], why: str) -> None:
    """Save before a run ends, and say how to go on; what ends it is what the caller must see in any case.

    Args:
        trainer: of the run.
        save: saves what is whole.
        why: the run ends: "interrupted".
    """
    try:
        save()
    except (RunFolderError, RuntimeError, MemoryError) as error:
        if not isinstance(error, RunFolderError) and not is_out_of_memory(error):
            raise
        trainer.say(f"{why}, and nothing could be saved: {error}")
    else:
        trainer.say(
            f"{why}: checkpoint-{trainer.state.global_step} is saved in {trainer.args.output_dir}. Go on with "
            "train(resume_from_checkpoint=True), or with the same command and --resume."
        )
