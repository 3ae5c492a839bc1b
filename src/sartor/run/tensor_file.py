"""Writing tensors as safetensors, without holding the interpreter's lock while bytes go to the disk.

In: tensors by name.  Out: a file that the safetensors library reads.  Why not that library: it holds the lock for as
long as it writes, so training would stand still while a checkpoint is written by a thread.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, a header of JSON that
names dtype, shape and place of each tensor, and the tensors' bytes, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from sartor.errors import ConfigurationError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_ALIGNMENT = 8
_PIECE_BYTES = 1 << 24


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Write a file; returns the bytes of its tensors.

    Tensors may share memory, and be anywhere and of any layout: each is written by itself, one after the other.

    Raises:
        ConfigurationError: a tensor has a dtype that the format lacks; names it.
        OSError: the disk is full, or refuses.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ConfigurationError(
                f"{name} is a tensor of {tensor.dtype}, which a checkpoint cannot hold: choose another optimizer or "
                "schedule, or set save_only_model=True to save the model alone."
            )
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            content = flat.view(torch.uint8).numpy().data
            for start in range(0, len(content), _PIECE_BYTES):
                file.write(content[start : start + _PIECE_BYTES])
    return end
