"""How `total_batch_size` is split into device batches, where it alone is given: the plan's choice.

In: a plan, or that of a checkpoint.  Out: a plan and settings with both parts.  What it
keeps true: the optimizer batch is what was asked for, whatever its parts, and a run that goes on keeps its split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sartor.memory.plan import device_rows
from sartor.records import Plan
from sartor.run.settings import RunSettings


def parts(settings: RunSettings, longest_tokens: int, micro_batch_tokens: int) -> tuple[int, int, str]:
    """(rows of a device batch, device batches of a step, why).

    Args:
        settings: of the training.
        longest_tokens: of all documents; 0: not known.
        micro_batch_tokens: that go through at once.
    """
    size, steps, total = settings.batch_size, settings.accumulation, settings.total_batch_size
    if total is None:
        return size, steps, "as asked"
    if settings.own_loss:  # from here on it would be mathematics, which free memory must not decide
        return size, steps, "at most 8, since an own loss or data_collator may depend on it"
    if settings.drop_last:
        return size, steps, "at most 8, since dataloader_drop_last drops rows by it"
    size = device_rows(total, longest_tokens or settings.data.max_length or 1, micro_batch_tokens)
    return size, total // size, f"so many of the longest rows go through at once ({micro_batch_tokens:,} tokens)"


def split(settings: RunSettings, plan: Plan, longest_tokens: int) -> tuple[RunSettings, Plan]:
    """Settings and plan with both parts; as they are where the user chose a part.

    Args:
        settings: of the training.
        plan: that says how much goes through at once.
        longest_tokens: of all documents.
    """
    if settings.total_batch_size is None:
        return settings, plan
    size, steps, why = parts(settings, longest_tokens, plan.micro_batch_tokens)
    text = f"{size}, times {steps} gradient_accumulation_steps is total_batch_size={settings.total_batch_size}: {why}"
    return _with_parts(settings, size, steps), replace(
        plan,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        reasons={**plan.reasons, "per_device_train_batch_size": text},
    )


def kept(settings: RunSettings, plan: Mapping[str, Any], before: Mapping[str, Any]) -> RunSettings:
    """Settings with the split of a checkpoint's plan, where its total is this run's and nobody chose a part.

    Args:
        settings: of the run that goes on.
        plan: of the checkpoint, as JSON has it.
        before: the options of the run that wrote it.
    """
    size, steps = plan.get("per_device_train_batch_size"), plan.get("gradient_accumulation_steps")
    total = settings.total_batch_size
    if size and steps and total is not None and before.get("total_batch_size") == total:
        return replace(_with_parts(settings, size, steps), total_batch_size=None)
    return settings


def _with_parts(settings: RunSettings, size: int, steps: int) -> RunSettings:
    """With both parts, also among the user's options, where these are known."""
    configuration = settings.configuration
    parts = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    values = {name: parts.get(name, value) for name, value in configuration.values.items()}
    return replace(settings, batch_size=size, accumulation=steps, configuration=replace(configuration, values=values))
