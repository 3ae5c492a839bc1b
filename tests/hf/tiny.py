"""What the trainer's tests train: a tokenizer of whole words, a model of a few thousand weights, a handful of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sartor import SFTConfig, SFTTrainer

WORDS = [
    "the",
    "a",
    "moon",
    "sun",
    "star",
    "is",
    "of",
    "to",
    "and",
    "not",
    "green",
    "blue",
    "old",
    "cold",
    "says",
    "sings",
    "user",
    "assistant",
    "hello",
    "why",
    "because",
    "yes",
    "no",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
VOCABULARY = [*SPECIAL, *WORDS, *(f"w{number}" for number in range(60))]


def make_tokenizer() -> Any:
    """A tokenizer of whole words; eos is <|endoftext|>, there is neither a pad token nor a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def make_model(*, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = False, **changes: Any) -> Any:
    """A Llama of one layer; the same weights for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "eos_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.2,  # large enough for losses to move within a few steps
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**fields, **changes})).to(dtype)


def texts(count: int = 10, *, start: int = 0) -> list[dict[str, str]]:
    """Rows of plain text, 3 to 9 words long, no two alike."""
    rows = []
    for number in range(start, start + count):
        length = 3 + (number * 5) % 7
        rows.append({"text": " ".join(f"w{(number * 13 + place * place) % 60}" for place in range(length))})
    return rows


def dataset(rows: list[dict[str, Any]] | None = None) -> Any:
    from datasets import Dataset

    return Dataset.from_list(texts() if rows is None else rows)


def stream(rows: list[dict[str, Any]]) -> Any:
    """The same rows, as something that can only be read from front to back."""
    return dataset(rows).to_iterable_dataset()


def config(folder: Path | str, **options: Any) -> SFTConfig:
    """Quiet, on the CPU in float32, saving nothing; `options` win."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "max_length": 64,
    }
    return SFTConfig(**{**defaults, **options})


def trainer(folder: Path | str, *, model: Any = None, rows: Any = None, **options: Any) -> SFTTrainer:
    """A trainer of ten texts; options that are the trainer's own go there, all others into the configuration."""
    own = {
        "eval_dataset",
        "callbacks",
        "compute_metrics",
        "compute_loss_func",
        "data_collator",
        "optimizers",
        "optimizer_cls_and_kwargs",
        "peft_config",
        "preprocess_logits_for_metrics",
        "formatting_func",
        "processing_class",
    }
    kind = options.pop("kind", SFTTrainer)
    arguments = {name: options.pop(name) for name in list(options) if name in own}
    arguments.setdefault("processing_class", make_tokenizer())
    return kind(
        model if model is not None else make_model(),
        config(folder, **options),
        train_dataset=dataset() if rows is None else rows,
        **arguments,
    )


def losses(history: list[dict[str, Any]]) -> list[float]:
    """The training losses of a log history."""
    return [entry["loss"] for entry in history if "loss" in entry]


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Assert that the block changes no parameter."""
    before = weights(model)
    yield
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
