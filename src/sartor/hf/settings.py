"""From `SFTConfig` to the frozen settings of a run."""

from __future__ import annotations

from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from sartor.config import Settings, SFTConfig, resolved_configuration
from sartor.config.resumption import MEMORY, OPTIMIZER, mathematics_of
from sartor.run.settings import Configuration, RunSettings


def run_settings(
    args: SFTConfig, settings: Settings, *, own_loss: bool = False, own_optimizer: bool = False
) -> RunSettings:
    """What a run needs to know.

    Args:
        args: as they are now.
        settings: what `config.resolve` made of them for data and engine.
        own_loss: whether a loss or collator of the user's own decides what is trained.
        own_optimizer: whether the optimizer is not the one that `args` name.
    """
    values = resolved_configuration(args)
    return RunSettings(
        data=settings.data,
        engine=settings.engine,
        configuration=Configuration(values, mathematics_of(values), MEMORY, OPTIMIZER),
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        total_batch_size=args.total_batch_size if args.splits_batch else None,
        drop_last=args.dataloader_drop_last,
        sampling=str(args.train_sampling_strategy),
        data_seed=args.seed if args.data_seed is None else args.data_seed,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        optimizer=None if own_optimizer else str(OptimizerNames(args.optim).value),
        optim_args=args.optim_args,
        router_aux_loss_coef=args.router_aux_loss_coef,
        own_loss=own_loss,
        eval_batch_size=args.per_device_eval_batch_size,
        bf16_full_eval=args.bf16_full_eval,
        fp16_full_eval=args.fp16_full_eval,
        sample_prompts=tuple(args.sample_prompts or ()),
        sample_max_new_tokens=args.sample_max_new_tokens,
        rehearse=args.rehearse,
        on_non_finite=args.on_non_finite,
        on_full_disk=args.on_full_disk,
        saves=args.save_strategy != SaveStrategy.NO,
        save_total_limit=args.save_total_limit,
        save_only_model=args.save_only_model,
        save_in_background=args.save_in_background,
        accept_changes=frozenset(args.accept_changes or ()),
    )
