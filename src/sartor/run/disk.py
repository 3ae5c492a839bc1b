"""Room on the disk for the checkpoints of a run: estimated before the first step, and asked for before each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sartor.engine.precision import Masters
from sartor.engine.traits import is_adapter
from sartor.errors import DiskFullError
from sartor.optim import registry
from sartor.run import checkpoint, saving
from sartor.run.settings import RunSettings
from sartor.wording import amount

_ASSUMED = registry.named("adamw_torch")
"""What an optimizer keeps of whose states nothing is known: two float32 moments."""


def require_room_for_run(
    model: Any,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    settings: RunSettings,
    folder: Path,
    num_checkpoints: int,
    say: Callable[[str], None],
) -> None:
    """See that the disk has room for as many checkpoints as will lie on it at once.

    Args:
        model: that is saved.
        masters: of its parameters.
        optimizer: whose states are saved.
        settings: of the run.
        folder: of the run.
        num_checkpoints: that will be saved.
        say: tells the user one thing.

    Raises:
        DiskFullError: it has not, and the run is to stop then; else that is said.
    """
    each = _weights_bytes(model, masters)
    if not settings.save_only_model:
        each += _state_bytes(model, masters, optimizer)
    limit = settings.save_total_limit or 0
    count = max(1, min(num_checkpoints, limit + 1 if limit > 0 else num_checkpoints))  # the new one comes first
    free = shutil.disk_usage(folder).free
    if each * count <= free:
        return
    text = (
        f"the checkpoints of this run need about {amount(each * count, 1)} ({count} of {amount(each, 1)} at a time), "
        f"and the disk of {folder} has {amount(free, 1)}: set save_total_limit, save less often, set "
        "save_only_model=True, or choose another output_dir"
    )
    if settings.on_full_disk == "stop":
        raise DiskFullError(f"{text}; on_full_disk='continue' trains on when it is full.")
    say(f"{text}. The run goes on without the checkpoints that do not fit (on_full_disk='continue').")


def require_room(model: Any, masters: Masters, target: Path, content: Mapping[str, Any] | None) -> None:
    """See that the disk has room for one checkpoint.

    Args:
        model: that is saved.
        masters: of its parameters.
        target: where.
        content: what is saved beside the model; None: nothing.

    Raises:
        DiskFullError: it has not.
    """
    needed = _weights_bytes(model, masters) + checkpoint.num_bytes(content)
    if content is not None and all(masters.arrival_dtype(p) == torch.float32 for p in _trained(model)):
        needed -= checkpoint.num_bytes(content["parameters"])  # saved with the weights
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFullError(
            f"no space left on the disk: {target} cannot be written. It needs {amount(needed, 1)}, and "
            f"{amount(free, 1)} are free. {saving.MAKE_ROOM}"
        )


def _state_bytes(model: Any, masters: Masters, optimizer: torch.optim.Optimizer) -> int:
    """Of the state of a run, before the optimizer has any."""
    wide = sum(p.nbytes for p in _trained(model) if masters.arrival_dtype(p) != p.dtype)
    facts = registry.of_base(type(optimizer)) or _ASSUMED
    known = checkpoint.num_bytes(optimizer.state_dict())
    return wide + (known or sum(facts.parameter_bytes(p, optimizer.defaults) for p in _trained(model)))


def _weights_bytes(model: Any, masters: Masters) -> int:
    """Of the model's folder: adapters alone where there is one."""
    saved = _trained(model) if is_adapter(model) else model.parameters()
    return sum(parameter.numel() * masters.arrival_dtype(parameter).itemsize for parameter in saved)


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
