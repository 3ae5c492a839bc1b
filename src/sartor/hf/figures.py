"""The figures of a run, made of what its trainer and its files hold."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from sartor.errors import ConfigurationError
from sartor.hf.base import SessionTrainer
from sartor.run import profiling, saving
from sartor.run.rehearsal import MEMORY_NAME

FIGURES = "figures"


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
        memory = session.memory or profiling.predicted(session, trainer.data_loader(), trainer.optimizer_maker())
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
