"""What becomes of every option: one row per field of `SFTConfig`, which has every field of trl's and of transformers'.

This is data alone.  `checks.py` refuses and announces from it, `page.py` writes docs/options.md from it, and a test
holds it equal, both ways, to the fields of the installed versions of trl and transformers.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from sartor.config.own_options import OWN_FIELDS
from sartor.config.texts import GROUPS
from sartor.optim.registry import SOME_MODULES_ONLY


class Status(StrEnum):
    """What an option does when it is set."""

    HONOURED = "honoured"
    REFUSED = "refused"
    """Setting it to anything but its default is an error that names it."""
    NO_EFFECT = "no effect"
    """Accepted, and said in one line where it is not at its default: the result would be the same with it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    status: Status
    remark: str = ""
    """Refused: why, and what to use.  No effect: why.  Honoured: the difference to trl, or the values that are
    refused."""


_REMARKS = {
    "optim": "Optimizers that torch and transformers build alone, and those of bitsandbytes, torchao and "
    "torch-optimi where the package is installed. Refused: GaLore and APOLLO (they need `optim_target_modules`), LOMO "
    "(it steps inside the backward pass), schedule-free ones (their weights differ between training and evaluation).",
    "bf16": "Permission, not a demand: what is computed in depends on the device (bf16 where the hardware has it, else "
    "fp32). `strict_precision=True` makes it a demand. No error on a CPU.",
    "fp16": "Permission, not a demand, as `bf16`.",
    "bf16_full_eval": "Sets what evaluations outside of training compute in; the model itself is not cast.",
    "fp16_full_eval": "Sets what evaluations outside of training compute in; the model itself is not cast.",
    "label_smoothing_factor": "Not together with `loss_type='dft'`.",
    "activation_checkpointing": "The newer name of `gradient_checkpointing`; giving both different values is an error.",
    "activation_checkpointing_kwargs": "`use_reentrant` is accepted and makes no difference; other keys are refused.",
    "gradient_checkpointing": "None, the default, lets the plan choose; trl's default is True.",
    "gradient_checkpointing_kwargs": "`use_reentrant` is accepted and makes no difference; other keys are refused.",
    "use_cache": "Set on the model, as transformers does.",
    "router_aux_loss_coef": "This loss depends on how a batch is cut into micro-batches, by its nature.",
    "dataset_kwargs": "The only key is `skip_prepare_dataset`; others are refused.",
    "padding_free": "Documents are laid end to end, whatever this says.",
    "loss_type": "`nll` or `dft`; `chunked_nll` is the old name of `nll`.",
    "train_sampling_strategy": "`random`, `sequential` or `group_by_length`; `batch_rebalance` is refused: it needs "
    "several processes.",
    "torch_compile": "The decoder's layers are compiled, for the passes that gradients are computed in; not with "
    "an own loss or data_collator.",
    "torch_compile_backend": "Of torch.compile; without one `inductor`.",
    "torch_compile_mode": "`default` or `max-autotune-no-cudagraphs`; those with CUDA graphs are refused: they keep "
    "memory for each length.",
    # our own
    **dict.fromkeys(OWN_FIELDS, "Sartor's own."),
}

_ONE_PROCESS = "Sartor trains on one device in one process"
_NO_WORKERS = "batches are cut from memory-mapped rows in the training process, which needs no worker processes"
_SCRIPTS = "only scripts read this; the trainer does what its methods are called for"
_LIGER = "Sartor's own chunked loss saves the same memory, and the model's layers stay transformers' own: leave it out"

_REFUSED = {
    "fsdp": f"{_ONE_PROCESS}: leave it out",
    "fsdp_config": f"{_ONE_PROCESS}: leave it out",
    "deepspeed": f"{_ONE_PROCESS}: leave it out",
    "parallelism_config": f"{_ONE_PROCESS}: leave it out",
    "accelerator_config": "accelerate neither loads nor splits batches here: leave it out (its defaults are accepted)",
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "optim_target_modules": SOME_MODULES_ONLY,
    "enable_jit_checkpoint": "a checkpoint is saved on SIGTERM without it, unless `save_strategy` is 'no': leave "
    "it out",
    "debug": "its hooks are not installed here: use `torch.autograd.set_detect_anomaly(True)`",
    "label_names": "labels are always the column `labels`: leave it out, or give ['labels']",
    "activation_offloading": "not built yet: use `gradient_checkpointing=True`, or a smaller `micro_batch_tokens`",
}

_NO_EFFECT = {
    "average_tokens_across_devices": "the loss is always the mean over the target tokens of the whole optimizer batch",
    "auto_find_batch_size": "the batch size you ask for is kept; `micro_batch_tokens` decides how much memory it takes",
    "logging_nan_inf_filter": "a loss that is not finite stops the run, so there is none to leave out",
    "log_on_each_node": _ONE_PROCESS,
    "log_level_replica": _ONE_PROCESS,
    "save_on_each_node": _ONE_PROCESS,
    "eval_use_gather_object": _ONE_PROCESS,
    "local_rank": _ONE_PROCESS,
    "ddp_find_unused_parameters": _ONE_PROCESS,
    "ddp_bucket_cap_mb": _ONE_PROCESS,
    "ddp_broadcast_buffers": _ONE_PROCESS,
    "ddp_static_graph": _ONE_PROCESS,
    "ddp_backend": _ONE_PROCESS,
    "ddp_timeout": _ONE_PROCESS,
    "dataloader_num_workers": _NO_WORKERS,
    "dataloader_pin_memory": _NO_WORKERS,
    "dataloader_persistent_workers": _NO_WORKERS,
    "dataloader_prefetch_factor": _NO_WORKERS,
    "dataloader_multiprocessing_context": _NO_WORKERS,
    "dataloader_in_order": _NO_WORKERS,
    "length_column_name": "`group_by_length` groups by the length of the tokenized examples themselves",
    "pad_to_multiple_of": "examples are laid end to end, so there is nothing to pad",
    "ignore_data_skip": "a resumed run goes on at the row where it stopped, always; rows that can be addressed are not "
    "read again",
    "restore_callback_states_from_checkpoint": "the states of callbacks are always restored: without them a "
    "resumed run would not be the same run",
    "do_train": _SCRIPTS,
    "do_eval": _SCRIPTS,
    "do_predict": _SCRIPTS,
    "resume_from_checkpoint": _SCRIPTS,
}

OPTIONS: MappingProxyType[str, Option] = MappingProxyType(
    {name: Option(Status.HONOURED, _REMARKS.get(name, "")) for group in GROUPS.values() for name in group}
    | {name: Option(Status.REFUSED, remark) for name, remark in _REFUSED.items()}
    | {name: Option(Status.NO_EFFECT, remark) for name, remark in _NO_EFFECT.items()}
)
"""Field name to its row."""
