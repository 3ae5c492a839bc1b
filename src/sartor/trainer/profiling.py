"""A look at a training's memory without training, and the figures of a run.

In: a trainer.  Out: what `memory.json` holds (foreseen, measured, by setting), and figures in a folder.  What it keeps
true: weights and random generators stay as they are; figures are made of what the run's files hold.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.engine.traits import base_model
from sartor.errors import ConfigurationError
from sartor.memory.allocator import retaining
from sartor.memory.consumers import what_consumes
from sartor.memory.simulate import Training, Work
from sartor.records import Plan
from sartor.run.implementation import set_implementation
from sartor.run.stepper import Updater
from sartor.run.transaction import simulated_update
from sartor.trainer import rehearsing, saving
from sartor.trainer.evaluating import lazy_loader
from sartor.trainer.feed import Feed
from sartor.trainer.setup import engine_for

if TYPE_CHECKING:
    from sartor.trainer.sft_trainer import SFTTrainer

FIGURES = "figures"


def profile(trainer: SFTTrainer) -> dict[str, Any]:
    """Rehearse the worst micro-batches of the training that is set up; returns what `memory.json` holds.

    Raises:
        ConfigurationError: there is nothing that could be rehearsed; says why.
        OutOfMemoryError: not even one document goes through.
    """
    if trainer.engine is not None:
        raise ConfigurationError("profile() is for before or after train(), not for while it runs.")
    feed = Feed(trainer)
    made_optimizer = trainer.optimizer is None
    with ExitStack() as stack:
        stack.enter_context(retaining(wanted=trainer.args.device.type == "cpu"))
        engine = stack.enter_context(engine_for(trainer, longest_tokens=feed.longest_document, trains=True, feed=feed))
        trainer.plan = engine.plan
        trainer.create_optimizer()
        set_implementation(trainer.optimizer, engine.plan.optimizer_implementation)
        try:
            updater = Updater(
                trainer.optimizer, None, engine, trainer.args.max_grad_norm, False, recovery=trainer.recovery
            )
            trainer.memory = rehearsing.rehearse_now(trainer, engine, feed, updater, num_steps=_num_steps(trainer))
        finally:
            trainer.model.zero_grad(set_to_none=True)
            if made_optimizer:
                trainer.optimizer = None
    return trainer.memory


def _num_steps(trainer: SFTTrainer) -> int:
    """Optimizer steps of the training."""
    args = trainer.args
    loader = lazy_loader(
        trainer.train_dataset, trainer._train_batch_size, trainer.data_collator, drop_last=args.dataloader_drop_last
    )
    return int(trainer.set_initial_training_values(args, loader)[-1])


def memory_of(trainer: SFTTrainer) -> dict[str, Any]:
    """What is known of the trainer's memory: of its last rehearsal, or of the run that its folder holds.

    Raises:
        ConfigurationError: nothing is known.
    """
    if trainer.memory is not None:
        return trainer.memory
    path = Path(trainer.args.output_dir) / rehearsing.MEMORY_NAME
    if not path.exists():
        raise ConfigurationError(
            "nothing was rehearsed, so there is no memory to show: call profile() first, or train with rehearse=True."
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def with_settings(trainer: SFTTrainer, memory: dict[str, Any]) -> dict[str, Any]:
    """The same, with what each setting would change; simulated once, which takes a few seconds."""
    if "settings" in memory or trainer.plan is None:
        return memory
    return {**memory, "settings": consumers(trainer, trainer.plan, memory)}


def consumers(trainer: SFTTrainer, plan: Plan, memory: dict[str, Any]) -> list[dict[str, Any]]:
    """See `memory.consumers.what_consumes`."""
    adapters = getattr(trainer.model, "peft_config", None)
    frozen = [parameter for parameter in trainer.model.parameters() if not parameter.requires_grad]
    training = Training(
        arrival_dtype=str(frozen[0].dtype).removeprefix("torch.") if frozen else "float32",
        make_optimizer=rehearsing.maker_of(trainer),
        update=simulated_update,
        lora=next(iter(adapters.values())) if adapters else None,
        settings=trainer.settings.engine,
    )
    work = Work(tuple(memory["document_lengths"]), memory["num_targets"], memory["num_micro_batches"])
    return what_consumes(base_model(trainer.model).config, plan, work, training)


def write_figures(trainer: SFTTrainer, folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Loss, lengths and, where there was a rehearsal, memory by component and by setting; returns the files.

    Args:
        folder: default: `figures` in the run folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    from sartor.report import memory_figures

    target = Path(folder or Path(trainer.args.output_dir) / FIGURES)
    with saving.explained(target):
        target.mkdir(parents=True, exist_ok=True)
    written = []
    if trainer.state.log_history:
        trainer.plot_loss(target / "loss.png")
        written.append(target / "loss.png")
    if Feed(trainer).examples is not None:
        trainer.plot_lengths(target / "lengths.png")
        written.append(target / "lengths.png")
    if trainer.memory is not None:
        trainer.memory = with_settings(trainer, trainer.memory)
        saving.write_json(os.path.join(trainer.args.output_dir, rehearsing.MEMORY_NAME), trainer.memory)
        for ending in ("png", "svg"):
            trainer.plot_memory(target / f"memory.{ending}")
            memory_figures.plot_settings(trainer.memory.get("settings", []), target / f"settings.{ending}")
            written += [target / f"memory.{ending}", target / f"settings.{ending}"]
    return written
