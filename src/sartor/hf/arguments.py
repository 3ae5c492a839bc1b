"""The constructor's arguments: old names, and data sets in every form that is accepted."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping
from typing import Any

from sartor import compat
from sartor.config import SFTConfig
from sartor.errors import ConfigurationError, RenamedWarning

RENAMED_TO_FIELDS = {
    "max_seq_length": "max_length",
    "dataset_text_field": "dataset_text_field",
    "packing": "packing",
    "eval_packing": "eval_packing",
    "dataset_num_proc": "dataset_num_proc",
    "dataset_kwargs": "dataset_kwargs",
    "model_init_kwargs": "model_init_kwargs",
    "neftune_noise_alpha": "neftune_noise_alpha",
}
"""Arguments of older trainers that are fields of SFTConfig today."""

RENAMED_ARGUMENTS = {"tokenizer": "processing_class"}


def take_old_arguments(old: Mapping[str, Any], processing_class: Any) -> tuple[dict[str, Any], Any]:
    """Sort keyword arguments that trl's trainer no longer has.

    Returns:
        Changes to SFTConfig's fields, and the processing class.

    Raises:
        TypeError: an argument that never existed, with the closest name.
        ConfigurationError: an old name and its new one contradict each other.
    """
    changes: dict[str, Any] = {}
    for name, value in old.items():
        if name in RENAMED_ARGUMENTS:
            _warn(f"SFTTrainer({name}=...) is called {RENAMED_ARGUMENTS[name]} today")
            if processing_class is not None and value is not processing_class:
                raise ConfigurationError(
                    "SFTTrainer was given both tokenizer and processing_class: leave tokenizer out."
                )
            processing_class = value
        elif name in RENAMED_TO_FIELDS:
            field = RENAMED_TO_FIELDS[name]
            _warn(f"SFTTrainer({name}=...) is SFTConfig({field}=...) today")
            changes[field] = value
        else:
            raise TypeError(_unknown(name))
    return changes, processing_class


def _unknown(name: str) -> str:
    known = ["model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "peft_config"]
    known += ["compute_loss_func", "compute_metrics", "callbacks", "optimizers", "optimizer_cls_and_kwargs"]
    known += ["preprocess_logits_for_metrics", "quantization_config", "formatting_func"]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"SFTTrainer.__init__() got an unexpected keyword argument {name!r}{hint}"


def _warn(message: str) -> None:
    warnings.warn(message, RenamedWarning, stacklevel=4)


def as_sft_config(args: Any, model: Any, changes: Mapping[str, Any]) -> SFTConfig:
    """The configuration.

    Given, made of TrainingArguments, or the default for this model, with old arguments applied.
    """
    if args is None:
        name = model if isinstance(model, str) else compat.name_or_path(model) or "model"
        args = SFTConfig(f"{name.rstrip('/').split('/')[-1]}-SFT", **changes)
    elif isinstance(args, SFTConfig):
        for field, value in changes.items():
            setattr(args, field, value)
    else:
        fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
        for name in ("gradient_checkpointing", "activation_checkpointing"):
            fields[name] = fields.get(name) or None  # False is transformers' default: the plan chooses
        args = SFTConfig(**{**fields, **changes})
    return args
