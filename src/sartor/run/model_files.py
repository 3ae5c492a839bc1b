"""A model's folder as transformers' `save_pretrained` writes it, from live tensors, while training goes on.

In: a model, and the dtype that each parameter is published in.  Out: configuration at once; weights later, by a thread
that reads the tensors where they lie.  What it keeps true: the folder is the one that `save_pretrained` would have
written, but for the order of bytes within a file; a weight is rounded a piece at a time.

`save_pretrained` itself is not for a thread: safetensors holds Python's lock for as long as it writes, so that training
would wait for all of it, and to round a model it would have to lie in memory twice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sartor import compat
from sartor.engine.traits import has_own_saving
from sartor.run import tensor_file
from sartor.run.snapshot import Snapshot
from sartor.run.tensor_file import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD_SIZE = "50GB"
"""Of transformers' own default."""
METADATA = {"format": "pt"}
"""transformers refuses a file without it."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's files will hold."""

    model: PreTrainedModel
    tensors: Mapping[str, torch.Tensor]
    """The live ones, by their names in the model."""
    dtypes: Mapping[str, torch.dtype]
    """That they are published in."""
    shards: Mapping[str, Mapping[str, str]]
    """For each file: name in the file, and name in the model."""
    index: Mapping[str, Any] | None
    """Of several files."""

    def write_configuration(self, folder: Path) -> None:
        """Configuration and generation configuration.

        Raises:
            OSError: the disk is full, or refuses.
        """
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        floating = [dtype for dtype in self.dtypes.values() if dtype.is_floating_point]
        if floating:
            config.dtype = str(floating[0]).removeprefix("torch.")
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)

    def write_weights(
        self, folder: Path, snapshot: Snapshot, keys: Mapping[str, str], stays: Callable[[str], bool]
    ) -> dict[str, list[int]]:
        """Weights, and where they need several files the index of these; checksums by file.

        Args:
            folder: of the model.
            snapshot: with every tensor.
            keys: of each tensor in the snapshot, by its name in the model.
            stays: whether somebody needs a tensor of the snapshot after this.

        Raises:
            OSError: the disk is full, or refuses.
        """
        checksums = {}
        for file, names in self.shards.items():
            entries = [
                Entry(written, keys[name], self.dtypes[name], is_last=not stays(name))
                for written, name in names.items()
            ]
            checksums[file] = tensor_file.write(folder / file, snapshot, entries, METADATA)
        if self.index is not None:
            text = json.dumps(self.index, indent=2, sort_keys=True) + "\n"
            (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return checksums

    def is_exact(self, name: str) -> bool:
        """Whether a file holds this tensor of the model under its own name, bit for bit."""
        tensor = self.tensors.get(name)
        is_there = any(names.get(name) == name for names in self.shards.values())
        return tensor is not None and is_there and tensor.dtype == self.dtypes[name]


def model_files(model: nn.Module, arrival_dtype: Callable[[nn.Parameter], torch.dtype]) -> ModelFiles | None:
    """What the files of a model will hold; None where only `save_pretrained` can tell.

    That is so where it computes what it writes (experts that training keeps in one tensor are taken apart), and for
    models that bring a way of their own.

    Args:
        model: of transformers.
        arrival_dtype: the dtype that a parameter is published in.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    if not isinstance(model, PreTrainedModel) or has_own_saving(model):
        return None
    left_out = compat.weights_not_saved(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    tensors = remove_tied_weights_from_state_dict(state, model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dtypes = {
        name: arrival_dtype(parameters[name]) if name in parameters else tensor.dtype
        for name, tensor in tensors.items()
    }
    hollow = {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in tensors.items()}
    written = revert_weight_conversion(model, dict(hollow))
    origins = {id(tensor): name for name, tensor in hollow.items()}
    if len(written) != len(hollow) or any(id(tensor) not in origins for tensor in written.values()):
        return None
    split = split_torch_state_dict_into_shards(
        written, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD_SIZE
    )
    shards = {
        file: {name: origins[id(written[name])] for name in names} for file, names in split.filename_to_tensors.items()
    }
    index = None
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
    return ModelFiles(model, tensors, dtypes, shards, index)
