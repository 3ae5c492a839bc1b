"""What a run is, in short: digests of data, template, tokenizer, model and adapter, to see whether two are the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from transformers.trainer_utils import has_length

from sartor.data.encoding.store import EXAMPLES_PER_BATCH, ContentDigest
from sartor.engine.traits import base_model
from sartor.records import Example
from sartor.run.examples import Examples
from sartor.run.preparation import Preparation
from sartor.version import __version__

_CHUNK_VALUES = 1 << 20
"""Of a frozen parameter, that are looked at together."""
_MOVING_CONFIGURATION = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Keys of a model's configuration that follow from where and when it was loaded, and whether it was saved."""

WHAT = {
    "data": "the prepared rows of train_dataset",
    "eval_data": "the prepared rows of eval_dataset",
    "tokenizer": "the tokenizer",
    "template": "the chat template",
    "model": "the base model: its configuration, or its frozen weights",
    "adapter": "the adapter's configuration",
    "loss": "whether an own loss or data_collator is used",
    "device": "the kind of device",
}
"""Name of each fingerprint to what it is taken of."""


class ExampleDigest:
    """A digest of a stream's examples in their order, which can be asked for at any time."""

    def __init__(self) -> None:
        self._checksum = hashlib.blake2b(digest_size=16)

    def add(self, example: Example) -> None:
        """One more."""
        for part in (example.input_ids, example.labels, example.seq_lengths, example.weights):
            content = np.ascontiguousarray(part)
            if content.dtype.kind in "iu":  # rows come as lists, or from Arrow's buffers
                content = content.astype(np.int64)
            self._checksum.update(len(content).to_bytes(8, "little"))
            self._checksum.update(content.tobytes())

    def hexdigest(self) -> str:
        """Of what was added so far."""
        return self._checksum.hexdigest()


def fingerprints(data: Preparation, model: Any, tokenizer: Any, *, own_loss: bool) -> dict[str, str]:
    """One digest, or one word, for each name of `WHAT`; the model's is without its weights (see `frozen_digests`)."""
    return {
        "data": _data(data, data.train),
        "eval_data": _evaluation_data(data),
        "tokenizer": _tokenizer(tokenizer),
        "template": _digest(getattr(tokenizer, "chat_template", None)),
        "model": _configuration(model),
        "adapter": _adapter(model),
        "loss": "own" if own_loss else "built in",
        "device": next(model.parameters()).device.type,
    }


def versions() -> dict[str, str]:
    """Versions that results may depend on in their last bits."""
    import transformers

    return {
        "sartor": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _data(preparation: Preparation, dataset: Any) -> str:
    """Of every example, taken when they were prepared; a stream's rows are compared as they are read again."""
    if not has_length(dataset):
        return "a stream"
    return preparation.digest_of(dataset) or content_digest(dataset)


def content_digest(dataset: Any) -> str:
    """Of every example of a data set, equal to the one that is taken while they are prepared."""
    columns = frozenset(dataset.column_names or ())
    if "input_ids" not in columns:  # rows that a user's own collator reads
        return _digest([str(row) for row in dataset])
    examples, digest = Examples(dataset), ContentDigest()
    for start in range(0, len(examples), EXAMPLES_PER_BATCH):
        part = examples.take(range(start, min(start + EXAMPLES_PER_BATCH, len(examples))))
        digest.add(
            np.concatenate([example.input_ids for example in part]),
            np.concatenate([example.labels for example in part]),
            np.array([len(example.input_ids) for example in part]),
            [example.seq_lengths for example in part] if "seq_lengths" in columns else None,
            np.concatenate([example.weights for example in part]) if "weights" in columns else None,
        )
    return digest.hexdigest()


def _evaluation_data(preparation: Preparation) -> str:
    dataset = preparation.evaluation
    if dataset is None:
        return "none"
    if isinstance(dataset, Mapping):
        return _digest({name: _data(preparation, part) for name, part in dataset.items()})
    return _data(preparation, dataset)


def _tokenizer(tokenizer: Any) -> str:
    """Of its vocabulary and rules where it has them in one text, else of its vocabulary; and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = [str(getattr(tokenizer, name, None)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    return _digest([rules, special])


def _configuration(model: Any) -> str:
    configuration = base_model(model).config.to_dict()
    return _digest({key: value for key, value in configuration.items() if key not in _MOVING_CONFIGURATION})


def frozen_digests(model: torch.nn.Module) -> dict[str, str]:
    """A digest of every value of each parameter that is not trained, by its name.

    All of them count: an embedding may have a few rows that were added, and began at random.
    """
    return {name: tensor_digest(value) for name, value in model.named_parameters() if not value.requires_grad}


def tensor_digest(tensor: torch.Tensor) -> str:
    """A digest of shape and values, the same in whatever floating dtype these were widened to."""
    checksum = xxhash.xxh3_128(str(tuple(tensor.shape)).encode())  # as fast as memory is read: models are large
    for chunk in tensor.detach().reshape(-1).split(_CHUNK_VALUES):
        values = chunk.cpu()
        plain = values.float() if values.is_floating_point() else values.contiguous()
        checksum.update(plain.view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _adapter(model: Any) -> str:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return "none"
    moving = ("inference_mode", "base_model_name_or_path", "revision", "peft_version")
    return _digest(
        {
            name: {key: value for key, value in adapter.to_dict().items() if key not in moving}
            for name, adapter in model.peft_config.items()
        }
    )


def _digest(content: Any) -> str:
    return hashlib.blake2b(_text(content).encode(), digest_size=16).hexdigest()


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not have: a set has no order, and differs from run to run."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
