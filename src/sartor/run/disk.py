"""Room on the disk for the checkpoints of a run: foreseen before the first step, and asked for before each of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import SaveStrategy

from sartor.errors import DiskFullError
from sartor.optim import registry
from sartor.run import checkpoint, saving
from sartor.wording import amount

if TYPE_CHECKING:
    from sartor.hf.sft_trainer import SFTTrainer

_ASSUMED = registry.named("adamw_torch")
"""What an optimizer keeps of whose states nothing is known: two float32 moments."""


def require_room_for_run(trainer: SFTTrainer) -> None:
    """See that the disk has room for as many checkpoints as will lie on it at once.

    Raises:
        DiskFullError: it has not, and the run is to stop then; else that is said.
    """
    args = trainer.args
    each = _foreseen_bytes(trainer)
    count = _num_kept(args, trainer.state)
    free = shutil.disk_usage(args.output_dir).free
    if each * count <= free:
        return
    text = (
        f"the checkpoints of this run need about {amount(each * count, 1)} ({count} of {amount(each, 1)} at a time), "
        f"and the disk of {args.output_dir} has {amount(free, 1)}: set save_total_limit, save less often, set "
        "save_only_model=True, or choose another output_dir"
    )
    if args.on_full_disk == "stop":
        raise DiskFullError(f"{text}; on_full_disk='continue' trains on when it is full.")
    trainer.say(f"{text}. The run goes on without the checkpoints that do not fit (on_full_disk='continue').")


def require_room(trainer: SFTTrainer, target: Path, content: Mapping[str, Any] | None) -> None:
    """See that the disk has room for one checkpoint.

    Args:
        trainer: whose model is saved.
        target: where.
        content: what is saved beside the model; None: nothing.

    Raises:
        DiskFullError: it has not.
    """
    needed = _weights_bytes(trainer) + checkpoint.num_bytes(content)
    if content is not None and all(dtype == torch.float32 for dtype in _saved_dtypes(trainer)):
        needed -= checkpoint.num_bytes(content["parameters"])  # saved with the weights
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFullError(
            f"no space left on the disk: {target} cannot be written. It needs {amount(needed, 1)}, and "
            f"{amount(free, 1)} are free. {saving.MAKE_ROOM}"
        )


def _foreseen_bytes(trainer: SFTTrainer) -> int:
    """Of one checkpoint, before the optimizer has any state."""
    weights = _weights_bytes(trainer)
    if trainer.args.save_only_model:
        return weights
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    masters = sum(p.nbytes for p in trained if trainer.masters.arrival_dtype(p) != p.dtype)
    known = checkpoint.num_bytes(trainer.optimizer.state_dict())
    facts = registry.of_base(type(trainer.optimizer)) or _ASSUMED
    options = trainer.optimizer.defaults
    return weights + masters + (known or sum(facts.parameter_bytes(parameter, options) for parameter in trained))


def _weights_bytes(trainer: SFTTrainer) -> int:
    """Of the model's folder: adapters alone where there is one."""
    from peft import PeftModel

    model = trainer.model
    alone = isinstance(model, PeftModel)
    return sum(
        parameter.numel() * trainer.masters.arrival_dtype(parameter).itemsize
        for parameter in model.parameters()
        if parameter.requires_grad or not alone
    )


def _saved_dtypes(trainer: SFTTrainer) -> set[torch.dtype]:
    return {trainer.masters.arrival_dtype(p) for p in trainer.model.parameters() if p.requires_grad}


def _num_kept(args: Any, run: Any) -> int:
    """How many checkpoints lie on the disk at once, at most: the new one is there before the oldest goes."""
    if args.save_strategy == SaveStrategy.STEPS:
        total = math.ceil(run.max_steps / max(run.save_steps or 1, 1))
    else:
        total = math.ceil(run.num_train_epochs)
    limit = args.save_total_limit
    return max(1, min(total, limit + 1 if limit and limit > 0 else total))
