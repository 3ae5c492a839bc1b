"""The figures of a run, made of what its trainer and its files hold."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from sartor.errors import ConfigurationError
from sartor.hf.base import SessionTrainer
from sartor.run import profiling, saving
from sartor.run.rehearsal import MEMORY_NAME
from sartor.run.setup import engine_for

FIGURES = "figures"


def memory_of(trainer: SessionTrainer) -> dict[str, Any]:
    """What is known of a trainer's memory: of its last rehearsal, or of the run in its folder; else predicted.

    Raises:
        ConfigurationError: nothing is known, and nothing can be predicted; says why.
    """
    session = trainer.refresh()
    if session.memory is not None:
        return session.memory
    path = session.folder / MEMORY_NAME
    if session.plan is None and path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return predicted_memory(trainer)


def predicted_memory(trainer: SessionTrainer) -> dict[str, Any]:
    """What a step of the training that is set up needs, by simulation; under the plan that it has, or would get.

    Raises:
        ConfigurationError: an own loss decides, or this model cannot be simulated.
    """
    session = trainer.refresh()
    if session.settings.own_loss or trainer.train_dataset is None:
        why = "without train_dataset" if trainer.train_dataset is None else "an own loss or data_collator decides"
        raise ConfigurationError(f"there is no memory to show: {why}.")
    data_loader, plan = trainer.data_loader(), session.plan
    if plan is None:
        with engine_for(
            session, longest_tokens=data_loader.longest_document, trains=True, data_loader=data_loader
        ) as engine:
            plan = engine.plan
    summary = session.data.summaries.get("train")
    return profiling.predicted(session.model, plan, session.settings, data_loader, summary, trainer.optimizer_maker())


def write_figures(trainer: SessionTrainer, folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Loss, lengths, memory by component, and by setting where there was a rehearsal; returns the files.

    Without a rehearsal memory is predicted alone, and says so; where it cannot be, that is said in its place.

    Args:
        folder: default: `figures` in the run folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    target = Path(folder or Path(trainer.args.output_dir) / FIGURES)
    with saving.explained(target):
        target.mkdir(parents=True, exist_ok=True)
    written = _draw(trainer, target)
    if folder is None:
        trainer.figures = tuple(f"{FIGURES}/{path.name}" for path in written)
    return written


def _draw(trainer: SessionTrainer, target: Path) -> list[Path]:
    from sartor.report import figures, memory_figures

    session, written = trainer.refresh(), []
    if trainer.state.log_history:
        figures.plot_loss(trainer.state.log_history, target / "loss.png")
        written.append(target / "loss.png")
    examples = trainer.data_loader().examples
    if examples is not None:
        figures.plot_lengths(examples.lengths.tolist(), target / "lengths.png", trainer.args.max_length)
        written.append(target / "lengths.png")
    if session.memory is not None:
        training = partial(profiling.training_like, session.model, session.settings.engine, trainer.optimizer_maker())
        session.memory = profiling.with_settings(session.memory, session.model, session.plan, training)
    try:
        memory = session.memory or predicted_memory(trainer)
    except ConfigurationError as error:
        trainer.say(f"no figure of memory: {error}")
        return written
    saving.write_json(os.path.join(trainer.args.output_dir, MEMORY_NAME), memory)
    for ending in ("png", "svg"):
        memory_figures.plot_memory(memory, target / f"memory.{ending}")
        written.append(target / f"memory.{ending}")
        if "settings" in memory:
            memory_figures.plot_settings(memory["settings"], target / f"settings.{ending}")
            written.append(target / f"settings.{ending}")
    return written
