"""A look at a training's memory without training, and the figures of a run.

In: a trainer.  Out: what `memory.json` holds (foreseen, measured, by setting), and figures in a folder.  What it keeps
true: weights and random generators stay as they are; figures are made of what the run's files hold.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sartor.device import kind_of
from sartor.engine.traits import base_model, read_traits
from sartor.errors import ConfigurationError
from sartor.hf.evaluating import lazy_loader
from sartor.memory import meta_model, trace
from sartor.memory.allocator import retaining
from sartor.memory.consumers import what_consumes
from sartor.memory.failure import reason_of
from sartor.memory.simulate import Training, Work, simulate_model
from sartor.optim.implementation import set_implementation
from sartor.records import Plan
from sartor.run import rehearsal, saving
from sartor.run.data_loader import TrainDataLoader
from sartor.run.planning import shape_of
from sartor.run.setup import engine_for
from sartor.run.stepper import Updater

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer

FIGURES = "figures"


def profile(trainer: SFTTrainer) -> dict[str, Any]:
    """Rehearse the worst micro-batches of the training that is set up; returns what `memory.json` holds.

    Raises:
        ConfigurationError: there is nothing that could be rehearsed; says why.
        OutOfMemoryError: not even one document goes through.
    """
    if trainer.engine is not None:
        raise ConfigurationError("profile() is for before or after train(), not for while it runs.")
    data_loader = TrainDataLoader(trainer)
    made_optimizer = trainer.optimizer is None
    with ExitStack() as stack:
        stack.enter_context(retaining(wanted=kind_of(trainer.args.device).is_host))
        engine = stack.enter_context(
            engine_for(trainer, longest_tokens=data_loader.longest_document, trains=True, data_loader=data_loader)
        )
        trainer.plan = engine.plan
        trainer.create_optimizer()
        set_implementation(trainer.optimizer, engine.plan.optimizer_implementation)
        try:
            updater = Updater(
                trainer.optimizer, None, engine, trainer.args.max_grad_norm, False, recovery=trainer.recovery
            )
            trainer.memory = rehearsal.rehearse_now(
                trainer, engine, data_loader, updater, num_steps=_num_steps(trainer)
            )
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
    """What is known of the trainer's memory: of its last rehearsal, or of the run that its folder holds; else foreseen.

    Raises:
        ConfigurationError: nothing is known, and nothing can be foreseen; says why.
    """
    if trainer.memory is not None:
        return trainer.memory
    path = Path(trainer.args.output_dir) / rehearsal.MEMORY_NAME
    if trainer.plan is None and path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return foreseen(trainer)


def foreseen(trainer: SFTTrainer) -> dict[str, Any]:
    """What `memory.json` holds where nothing was rehearsed: a step's memory by simulation, and nothing measured.

    Raises:
        ConfigurationError: an own loss decides, or this model cannot be simulated.
    """
    if trainer.uses_padded_batches or trainer.train_dataset is None:
        raise ConfigurationError(
            "there is no memory to show: "
            + ("without train_dataset" if trainer.train_dataset is None else "an own loss or data_collator decides")
            + "."
        )
    data_loader, plan = TrainDataLoader(trainer), trainer.plan
    if plan is None:
        with engine_for(
            trainer, longest_tokens=data_loader.longest_document, trains=True, data_loader=data_loader
        ) as engine:
            plan = engine.plan
    try:
        model = meta_model.imitate(trainer.model)
        meta_model.widen(model, getattr(torch, plan.compute_dtype), rounds=plan.stochastic_rounding)
        traits = read_traits(model)
        shape = replace(shape_of(trainer, data_loader), document_limit=traits.rope_switch_tokens)
        work = shape.work(plan.micro_batch_tokens, plan.layout)
        prediction = simulate_model(model, plan, work, _training(trainer))
        return trace.as_json(prediction, [], rehearsal.about(model, traits, plan, work))
    except Exception as error:
        raise ConfigurationError(
            f"nothing was rehearsed, and this model cannot be simulated: {reason_of(error)}"
        ) from error


def with_settings(trainer: SFTTrainer, memory: dict[str, Any]) -> dict[str, Any]:
    """The same, with what each setting would change; simulated once, which takes a few seconds."""
    if "settings" in memory or trainer.plan is None:
        return memory
    return {**memory, "settings": consumers(trainer, trainer.plan, memory)}


def consumers(trainer: SFTTrainer, plan: Plan, memory: dict[str, Any]) -> list[dict[str, Any]]:
    """See `memory.consumers.what_consumes`."""
    training = _training(trainer)
    work = Work(tuple(memory["document_lengths"]), memory["num_targets"], memory["num_micro_batches"])
    return what_consumes(base_model(trainer.model).config, plan, work, training)


def _training(trainer: SFTTrainer) -> Training:
    adapters = getattr(trainer.model, "peft_config", None)
    frozen = [parameter for parameter in trainer.model.parameters() if not parameter.requires_grad]
    return Training(
        arrival_dtype=str(frozen[0].dtype).removeprefix("torch.") if frozen else "float32",
        make_optimizer=rehearsal.maker_of(trainer),
        lora=next(iter(adapters.values())) if adapters else None,
        settings=trainer.settings.engine,
    )


def write_figures(trainer: SFTTrainer, folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Loss, lengths, memory by component, and by setting where there was a rehearsal; returns the files.

    Without a rehearsal memory is foreseen alone, and says so; where it cannot be, that is said in its place.

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


def _draw(trainer: SFTTrainer, target: Path) -> list[Path]:
    from sartor.report import memory_figures

    written = []
    if trainer.state.log_history:
        trainer.plot_loss(target / "loss.png")
        written.append(target / "loss.png")
    if TrainDataLoader(trainer).examples is not None:
        trainer.plot_lengths(target / "lengths.png")
        written.append(target / "lengths.png")
    if trainer.memory is not None:
        trainer.memory = with_settings(trainer, trainer.memory)
    try:
        memory = trainer.memory or foreseen(trainer)
    except ConfigurationError as error:
        trainer.say(f"no figure of memory: {error}")
        return written
    saving.write_json(os.path.join(trainer.args.output_dir, rehearsal.MEMORY_NAME), memory)
    for ending in ("png", "svg"):
        memory_figures.plot_memory(memory, target / f"memory.{ending}")
        written.append(target / f"memory.{ending}")
        if "settings" in memory:
            memory_figures.plot_settings(memory["settings"], target / f"settings.{ending}")
            written.append(target / f"settings.{ending}")
    return written
