"""A safetensors file, written piece by piece from tensors that are lent.

In: tensors by name.  Out: a file that safetensors reads.  What it keeps true: at most one piece of `PIECE_BYTES` is in
memory a second time, and none of a contiguous tensor on the CPU; each tensor is returned as soon as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sartor.errors import ConfigurationError
from sartor.run.background import Loan

PIECE_BYTES = 1 << 25

# https://github.com/huggingface/safetensors#format
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT_BYTES = 8


def write(path: Path, tensors: Loan) -> int:
    """Write everything that is lent, and return it; the bytes of it.

    Raises:
        ConfigurationError: a dtype that the format does not have.
        OSError: the disk is full, or refuses.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the largest words first: aligned
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ConfigurationError(
                f"{name} has the dtype {tensor.dtype}, which a checkpoint's file cannot hold: choose another "
                "optimizer, or set save_only_model=True."
            )
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
        for name in names:
            with tensors.reading(name) as tensor:
                for piece in _pieces(tensor):
                    _write_all(file, piece)
            tensors.returned(name)
    return end


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, in order."""
    if not tensor.numel():
        return
    flat = tensor.detach().reshape(-1)
    step = max(1, PIECE_BYTES // flat.element_size())
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].cpu().view(torch.uint8).numpy().data


def _write_all(file: Any, content: memoryview) -> None:
    """A raw file may take less than it is given."""
    while content:
        content = content[file.write(content) :]
