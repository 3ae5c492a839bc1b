"""The checkpoints of one `train()`: what is in them, and writing them while training goes on.

A thread writes it from the live tensors, which nobody changes before the next optimizer step; whoever steps says so
before (`secure`), and what was not read by then is copied, or waited for.  The model's own files are the thread's too,
but for adapters, which are small, and for those that are saved in a way of the user's own (see `checkpoint_writer`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sartor.device import HOST
from sartor.errors import RunFolderError
from sartor.memory.limits import available_bytes
from sartor.run import checkpoint, checkpoint_writer, disk, saving, state
from sartor.run.fingerprints import fingerprints, frozen_digests, versions
from sartor.run.session import Session
from sartor.run.snapshot import Snapshot, Writer
from sartor.run.stepper import Updater
from sartor.wording import amount

_COPY_MARGIN = 1.25
"""Free memory for each byte of a copy; training must not run out because of it."""


class Companion:
    """What else belongs to a run and its checkpoints, for whoever adds to them: here nothing."""

    save_model: Callable[[Path], None] | None = None
    """Writes model and tokenizer in a way of its own; None: they are written as transformers does."""

    def may_change(self) -> bool:
        """Whether somebody may change weights between a save and the next optimizer step."""
        return False

    def needs_it_whole(self) -> bool:
        """Whether a checkpoint must be on the disk when `Checkpoints.save` returns."""
        return False

    def write(self, partial: Path, target: Path) -> Callable[[], None]:
        """Write more files into a checkpoint, which lies in `partial` until it is `target`.

        Returns what is to be called where it does not come to be.
        """
        return lambda: None

    def best(self) -> Path | None:
        """The checkpoint that is kept, however old it becomes."""
        return None

    def control(self) -> dict[str, bool]:
        """What was decided and is not done yet: for a checkpoint."""
        names = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
        return dict.fromkeys(names, False)

    def metrics_bytes(self) -> int | None:
        """The length of `metrics.jsonl` that a resumed run goes on from; None: all that is written."""
        return None


class Checkpoints:
    """Saves the state of one run."""

    def __init__(
        self,
        session: Session,
        updater: Updater,
        run: int,
        companion: Companion,
        place: Callable[[], dict[str, Any]],
        on_wait: Callable[[float], None],
    ) -> None:
        """Args:
        session: of the run.
        updater: that steps it.
        run: its number among the runs of its folder.
        companion: adds to checkpoints.
        place: gives the place in the run.
        on_wait: is called with the seconds that training has waited for a checkpoint.
        """
        self._session = session
        self.run = run
        self._updater = updater
        self._companion = companion
        self._place = place
        self._on_wait = on_wait
        self._writer = Writer()
        self._lent: Snapshot | None = None
        self._identity: dict[str, dict[str, str]] | None = None
        """What the run is, in digests, which are taken once."""
        self._has_said_room = False
        self.num_saved = 0
        self.waited_s = 0.0
        """That training has waited for checkpoints, all together."""
        self.waited_in_steps_s = 0.0
        """Of it, before optimizer steps."""
        updater.before_step = self.secure

    def save(self) -> Path:
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
        self._on_wait(seconds)

    def _save(self) -> Path:
        session, companion, settings = self._session, self._companion, self._session.settings
        target = session.folder / f"{checkpoint.PREFIX}{session.steps.done}"
        partial = checkpoint.partial_path(target)
        if partial.is_symlink():
            raise RunFolderError(
                f"{partial} is a link to {os.readlink(partial)}: a checkpoint that is written there would overwrite "
                "what it leads to. Delete the link."
            )
        shutil.rmtree(partial, ignore_errors=True)
        lends = settings.save_in_background and not companion.may_change()
        try:
            with saving.explained(target):
                content = None if settings.save_only_model else self._content()
                disk.require_room(session.model, session.masters, target, content)
                begun = checkpoint_writer.begin(
                    session.model,
                    session.masters,
                    session.tokenizer,
                    partial,
                    content,
                    save_model=companion.save_model,
                    is_lent=lends,
                )
                take_back = companion.write(partial, target)
        except BaseException:  # an interrupt too: nothing half-written is left
            shutil.rmtree(partial, ignore_errors=True)
            raise
        best = companion.best()

        def finish() -> None:
            try:
                with saving.explained(target):
                    checkpoint.seal(partial, begun.write_rest(), run=self.run)
                    checkpoint.publish(partial, target)
            except BaseException:
                take_back()
                shutil.rmtree(partial, ignore_errors=True)
                raise
            finally:
                begun.end()
            for folder in checkpoint.superfluous(target, settings.save_total_limit, best):
                checkpoint.delete(folder)

        self._lent = None if begun.packed is None else begun.packed.tensors
        if settings.save_in_background:
            self._writer.start(finish)
            if not lends:
                self._secure()
        else:
            finish()
        if companion.needs_it_whole():
            self._writer.wait()
        return target

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
            self._session.say(
                f"checkpoints saved: {self.num_saved}; training has waited {self.waited_s:.2f} s for them, "
                f"{self.waited_in_steps_s:.2f} s of it before optimizer steps."
            )

    def settle(self) -> None:
        """Until what was begun is done, when a run ends in whatever way; what goes wrong is said."""
        try:
            self._writer.wait()
        except Exception as error:
            self._session.say(f"the last checkpoint could not be saved: {error}")

    def prepare(self, num_checkpoints: int) -> None:
        """What can be known before the first step: that the disk has room, and that what is there can be written.

        Args:
            num_checkpoints: that will be saved, about.

        Raises:
            DiskFullError: there is too little room for the checkpoints of this run.
        """
        session, settings = self._session, self._session.settings
        if not settings.saves:
            return
        if not settings.save_only_model:
            self._identify()
        disk.require_room_for_run(
            session.model,
            session.masters,
            self._updater.optimizer,
            settings,
            session.folder,
            num_checkpoints,
            session.say,
        )

    def check_state(self) -> None:
        """After the first step, when an optimizer has its state: see that it can be written.

        Raises:
            ConfigurationError: it cannot, without pickle.
        """
        settings = self._session.settings
        if settings.saves and not settings.save_only_model:
            self._pack_all()

    def _pack_all(self) -> None:
        optimizer, scheduler = self._updater.optimizer, self._updater.scheduler
        state.pack(optimizer.state_dict(), f"the state of the optimizer {type(optimizer).__name__}")
        state.pack(scheduler.state_dict(), f"the state of the schedule {type(scheduler).__name__}")

    def _content(self) -> dict[str, Any]:
        """Everything that a run is, besides the model's folder; tensors are the live ones."""
        model, engine, updater = self._session.model, self._session.engine, self._updater
        assert engine is not None
        self._pack_all()
        persistent = model.state_dict().keys()
        return {
            "parameters": {
                name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
            },
            "buffers": {name: value for name, value in model.named_buffers() if name in persistent},
            "optimizer": updater.optimizer.state_dict(),
            "optimizer_class": type(updater.optimizer).__name__,
            "schedule": updater.scheduler.state_dict(),
            "updater": updater.state(),
            **self._place(),
            "plan": json.loads(json.dumps(dataclasses.asdict(engine.plan))),
            **self._identify(),
            "settings": self._session.settings.configuration.values,
            "versions": versions(),
        }

    def _identify(self) -> dict[str, dict[str, str]]:
        if self._identity is None:
            session, own_loss = self._session, self._session.settings.own_loss
            self._identity = {
                "fingerprints": fingerprints(session.data, session.model, session.tokenizer, own_loss=own_loss),
                "frozen": frozen_digests(session.model),
            }
        return self._identity

    def _has_room(self, lent_bytes: int) -> bool:
        """Whether memory has room for a copy of what the thread has not read yet."""
        needed = lent_bytes * _COPY_MARGIN
        free = available_bytes(torch.device(HOST))
        if needed <= free:
            return True
        if not self._has_said_room:
            self._has_said_room = True
            self._session.say(
                "training waits for a checkpoint to be written: a copy of the rest needs "
                f"{amount(needed, 1)}, and "
                f"{amount(free, 1)} of memory are free."
            )
        return False
