"""How `total_batch_size` is split into device batches, where it alone is given: the plan's choice, known to
transformers.

In: a plan, or that of a checkpoint.  Out: a plan with both parts, and arguments and trainer that have them too.  What
it keeps true: the optimizer batch is what was asked for, whatever its parts, and a run that goes on keeps its split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sartor.memory.plan import device_rows
from sartor.records import Plan

if TYPE_CHECKING:
    from sartor.config import SFTConfig
    from sartor.hf.sft_trainer import SFTTrainer


def parts(
    args: SFTConfig, longest_tokens: int, micro_batch_tokens: int, *, own_loss: bool = False
) -> tuple[int, int, str]:
    """(rows of a device batch, device batches of a step, why).

    Args:
        args: of the training.
        longest_tokens: of all documents; 0: not known.
        micro_batch_tokens: that go through at once.
        own_loss: whether an own loss or collator gets device batches.
    """
    size, steps, total = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.total_batch_size
    if total is None or not args.splits_batch:
        return size, steps, "as asked"
    if own_loss:  # from here on it would be mathematics, which free memory must not decide
        return size, steps, "at most 8, since an own loss or data_collator may depend on it"
    if args.dataloader_drop_last:
        return size, steps, "at most 8, since dataloader_drop_last drops rows by it"
    size = device_rows(total, longest_tokens or int(args.max_length or 1), micro_batch_tokens)
    return size, total // size, f"so many of the longest rows go through at once ({micro_batch_tokens:,} tokens)"


def split(trainer: SFTTrainer, plan: Plan, longest_tokens: int) -> Plan:
    """The plan with both parts, which the trainer and its arguments then have; as it is where the user chose a part.

    Args:
        trainer: about to train.
        plan: that says how much goes through at once.
        longest_tokens: of all documents.
    """
    args = trainer.args
    if not args.splits_batch:
        return plan
    size, steps, why = parts(args, longest_tokens, plan.micro_batch_tokens, own_loss=trainer.uses_padded_batches)
    take(trainer, size, steps)
    text = f"{size}, times {steps} gradient_accumulation_steps is total_batch_size={args.total_batch_size}: {why}"
    return replace(
        plan,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        reasons={**plan.reasons, "per_device_train_batch_size": text},
    )


def keep(trainer: SFTTrainer, plan: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Take the split of a checkpoint's plan, where its total is this run's and nobody chose a part.

    Args:
        trainer: of the run that goes on.
        plan: of the checkpoint, as JSON has it.
        settings: of the run that wrote it.
    """
    size, steps = plan.get("per_device_train_batch_size"), plan.get("gradient_accumulation_steps")
    total = trainer.args.total_batch_size
    if size and steps and trainer.args.splits_batch and settings.get("total_batch_size") == total:
        take(trainer, size, steps, is_final=True)


def take(trainer: SFTTrainer, size: int, steps: int, *, is_final: bool = False) -> None:
    """Rows of a device batch, and device batches of a step, wherever transformers looks for them."""
    trainer.args.take_batch(size, steps, is_final=is_final)
    trainer._train_batch_size = trainer.args.train_batch_size
