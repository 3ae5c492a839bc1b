"""What each honoured option means, in one line, in the groups and the order in which `--help` and the docs show them.

Options whose field is defined in `sft_config.py` have their line there; here it is empty.
"""

from types import MappingProxyType

_MODEL = {
    "model_init_kwargs": "",
    "trust_remote_code": "",
    "chat_template_path": "",
    "eos_token": "",
    "pad_token": "",
    "router_aux_loss_coef": "",
    "use_cache": "The model configuration's use_cache. Training itself never uses a cache.",
}
_DATA = {
    "map": "",
    "bad_rows": "",
    "mix_until": "",
    "max_length": "",
    "truncation_mode": "",
    "no_targets": "",
    "packing": "",
    "packing_strategy": "",
    "padding_free": "",
    "eval_packing": "",
    "shuffle_dataset": "",
    "dataset_text_field": "",
    "dataset_kwargs": "",
    "data_cache": "",
    "dataset_num_proc": "",
    "train_sampling_strategy": "Order of the rows: random, sequential, or group_by_length.",
    "remove_unused_columns": "Keep only the columns that training needs.",
    "dataloader_drop_last": "Leave out the last batch of an epoch where it is not full.",
    "seed": "Seed of everything random in the run.",
    "data_seed": "Seed of the order of the rows. If not set, seed.",
}
_LENGTH = {
    "num_train_epochs": "Passes over the data; a fraction stops within the last one.",
    "max_steps": "Optimizer steps in all, whatever num_train_epochs says. -1: not given.",
    "per_device_train_batch_size": "Examples per batch; times gradient_accumulation_steps, per optimizer step.",
    "gradient_accumulation_steps": "Batches per optimizer step.",
    "total_batch_size": "",
}
_OPTIMIZER = {
    "learning_rate": "",
    "lr_scheduler_type": "How the learning rate changes: linear, cosine, constant, constant_with_warmup, ...",
    "lr_scheduler_kwargs": "",
    "warmup_steps": "",
    "optim": "Optimizer: adamw_torch_fused, adamw_torch, adafactor, sgd, adagrad, rmsprop, adamw_bnb_8bit, ...",
    "optim_args": "Further arguments of the optimizer, such as 'momentum=0.9'.",
    "weight_decay": "Decay of the weights that are decayed: all but biases and norms.",
    "adam_beta1": "Decay rate of Adam's first moment.",
    "adam_beta2": "Decay rate of Adam's second moment.",
    "adam_epsilon": "Adam's epsilon.",
    "max_grad_norm": "Longer gradients are shortened to this norm. 0: never.",
}
_LOSS = {
    "completion_only_loss": "",
    "assistant_only_loss": "",
    "unroll": "",
    "append_eot": "",
    "target_start": "",
    "loss_type": "",
    "label_smoothing_factor": "Share of each target's weight that is spread over all tokens.",
    "neftune_noise_alpha": "Strength of NEFTune's noise on the embeddings (https://huggingface.co/papers/2310.05914).",
}
_EXECUTION = {
    "bf16": "",
    "fp16": "Permit float16 mixed precision, with loss scaling; what is used depends on the device.",
    "strict_precision": "",
    "stochastic_rounding": "",
    "tf32": "Let fp32 products of CUDA devices use TF32. If not set, torch's own choice.",
    "gradient_checkpointing": "",
    "gradient_checkpointing_kwargs": "use_reentrant is accepted and makes no difference.",
    "activation_checkpointing": "The newer name of gradient_checkpointing.",
    "activation_checkpointing_kwargs": "The newer name of gradient_checkpointing_kwargs.",
    "micro_batch_tokens": "",
    "rehearse": "",
    "loss_chunk_rows": "",
    "recomputed_operations": "",
    "optimizer_implementation": "",
    "optimizer_states": "",
    "torch_compile": "Compile the decoder's layers: faster steps, after a minute or so of compiling.",
    "torch_compile_backend": "Of torch.compile. If not set, inductor.",
    "torch_compile_mode": "Of torch.compile: 'default' or 'max-autotune-no-cudagraphs'.",
    "on_non_finite": "",
    "torch_empty_cache_steps": "Steps between two releases of unused device memory. If not set, never.",
    "full_determinism": "Deterministic algorithms everywhere: slower, and equal from run to run on a GPU too.",
    "use_cpu": "",
}
_EVALUATION = {
    "eval_strategy": "",
    "eval_steps": "Steps between two evaluations; below 1 a share of all steps. If not set, logging_steps.",
    "eval_delay": "Steps or epochs before the first evaluation.",
    "eval_on_start": "Evaluate once before the first step.",
    "eval_on_end": "",
    "sample_prompts": "",
    "sample_steps": "",
    "sample_max_new_tokens": "",
    "per_device_eval_batch_size": "Examples per batch of an evaluation.",
    "prediction_loss_only": "Keep only the loss of an evaluation.",
    "eval_accumulation_steps": "Batches after which predictions are moved to the CPU.",
    "eval_do_concat_batches": "Hand predictions to compute_metrics as one array instead of a list.",
    "include_for_metrics": "What compute_metrics gets besides predictions: inputs, loss.",
    "batch_eval_metrics": "Call compute_metrics after each batch.",
    "bf16_full_eval": "Compute evaluations in bfloat16 where the device has it.",
    "fp16_full_eval": "Compute evaluations in float16 where the device has it.",
    "load_best_model_at_end": "End with the best checkpoint, not the last.",
    "metric_for_best_model": "What best means: a name in the evaluation's metrics. If not set, the loss.",
    "greater_is_better": "Whether more of it is better. If not set, True unless its name ends in loss or perplexity.",
}
_LOGGING = {
    "logging_strategy": "When to log: no, steps or epoch.",
    "logging_steps": "",
    "logging_first_step": "Log the first step too.",
    "include_num_input_tokens_seen": "Log how many tokens were seen: no, all or non_padding.",
    "report_to": "Where to report besides the run folder: tensorboard, wandb, trackio, ..., all or none.",
    "run_name": "Name of the run there.",
    "project": "Name of the project there.",
    "trackio_space_id": "Hugging Face Space that trackio shows the run in.",
    "trackio_bucket_id": "Hugging Face bucket that trackio writes to.",
    "trackio_static_space_id": "Static Space that trackio publishes to at the end.",
    "log_level": "Least severity of transformers' messages that is shown.",
    "disable_tqdm": "Plain lines instead of a progress bar.",
    "skip_memory_metrics": "Leave transformers' memory reports out of the metrics.",
}
_SAVING = {
    "output_dir": "The run's folder: configuration, metrics, checkpoints and the final model.",
    "save_strategy": "When to save a checkpoint: no, steps, epoch or best.",
    "save_steps": "Steps between two checkpoints; below 1 a share of all steps.",
    "save_total_limit": "How many checkpoints to keep, the newest. If not set, all.",
    "save_only_model": "Save checkpoints that can be used, but not gone on from.",
    "on_full_disk": "",
    "save_in_background": "",
    "accept_changes": "",
}
_HUB = {
    "push_to_hub": "Upload the model to the Hugging Face Hub.",
    "hub_model_id": "Repository to upload to. If not set, the name of output_dir.",
    "hub_strategy": "What to upload when: end, every_save, checkpoint or all_checkpoints.",
    "hub_token": "Token for the Hub. If not set, the one you are logged in with; never written to a file.",
    "hub_private_repo": "Make the repository private.",
    "hub_always_push": "Upload even while the last upload is still going on.",
    "hub_revision": "Branch to upload to.",
    "hub_timeout_s": "",
}

GROUPS: MappingProxyType[str, dict[str, str]] = MappingProxyType(
    {
        "model": _MODEL,
        "data": _DATA,
        "length and batches": _LENGTH,
        "optimizer": _OPTIMIZER,
        "loss": _LOSS,
        "precision, memory, device": _EXECUTION,
        "evaluation": _EVALUATION,
        "logging": _LOGGING,
        "saving": _SAVING,
        "Hub": _HUB,
    }
)
"""Group to its options, each with its line."""
