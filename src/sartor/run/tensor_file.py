"""A safetensors file, written piece by piece from the tensors of a snapshot.

In: tensors by name.  Out: a file that safetensors reads, and the checksums of its blocks.  What it keeps true: at most
one block and one piece are in memory a second time; each tensor is returned as soon as it is written.

The file does not go through the system's cache where that can be left out (`O_DIRECT`): finding and filling pages for
gigabytes that nobody reads again takes a core several times as long as writing them.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash

from sartor.errors import ConfigurationError
from sartor.run.snapshot import Snapshot

PIECE_BYTES = 1 << 25
"""Of a tensor on a GPU, that are copied at a time."""
BLOCK_BYTES = 1 << 24
"""Of a file, that share a checksum; whole pages."""

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
_PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file."""

    name: str
    """In the file."""
    key: str
    """In the snapshot."""
    dtype: torch.dtype
    """In the file: another one than the tensor's is rounded to, a piece at a time."""
    is_last: bool = True
    """Whether nobody needs the tensor after it was written."""


def write(
    path: Path, tensors: Snapshot, entries: Sequence[Entry] | None = None, metadata: Mapping[str, str] | None = None
) -> list[int]:
    """Write tensors of a snapshot, and give them back; returns the checksum of each block of the file.

    Args:
        path: of the file, which is new.
        tensors: the snapshot.
        entries: which of them; None: all, as they are.
        metadata: of the file.

    Raises:
        ConfigurationError: a dtype that the format does not have.
        OSError: the disk is full, or refuses.
    """
    if entries is None:
        entries = [Entry(name, name, tensors[name].dtype) for name in tensors]
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))  # the largest words first: aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        if entry.dtype not in _NAMES:
            raise ConfigurationError(
                f"{entry.name} has the dtype {entry.dtype}, which a checkpoint's file cannot hold: choose another "
                "optimizer, or set save_only_model=True."
            )
        shape = tensors[entry.key].shape
        start, end = end, end + shape.numel() * entry.dtype.itemsize
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with _File(path) as file:
        file.write(memoryview(len(text).to_bytes(8, "little") + text))
        for entry in entries:
            with tensors.reading(entry.key) as tensor:
                for piece in _pieces(tensor, entry.dtype):
                    file.write(piece)
            if entry.is_last:
                tensors.returned(entry.key)
    return file.checksums


def checksum(block: memoryview) -> int:
    """XXH3 in 64 bits: of damaged blocks it misses one in 2e19, at a seventh of the time that CRC-32 takes."""
    return xxhash.xxh3_64_intdigest(block)


def _pieces(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of a tensor in a dtype, in order."""
    if not tensor.numel():
        return
    flat = tensor.detach().reshape(-1)
    step = max(1, PIECE_BYTES // flat.element_size())
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].to(dtype).cpu().view(torch.uint8).numpy().data


class _File:
    """A new file, written a block at a time, past the system's cache where it lets that be."""

    def __init__(self, path: Path) -> None:
        self.checksums: list[int] = []
        assert BLOCK_BYTES % _PAGE_BYTES == 0, BLOCK_BYTES
        self._block = mmap.mmap(-1, BLOCK_BYTES)  # at the start of a page, as writing past the cache needs it
        self._filled = self._size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._direct: int = getattr(os, "O_DIRECT", 0)
        try:
            self._descriptor = os.open(path, flags | self._direct, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0
            self._descriptor = os.open(path, flags, 0o666)

    def __enter__(self) -> _File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            os.close(self._descriptor)

    def write(self, content: memoryview) -> None:
        """Append."""
        while content:
            part = content[: BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            content = content[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._flush()

    def _flush(self) -> None:
        if not self._filled:
            return
        with memoryview(self._block) as block:
            self.checksums.append(checksum(block[: self._filled]))
            end = -(-self._filled // _PAGE_BYTES) * _PAGE_BYTES if self._direct else self._filled
            written = 0
            while written < end:
                written += self._write_some(block[written:end])
        self._size += self._filled
        if end != self._filled:  # whole pages alone may be written past the cache
            os.ftruncate(self._descriptor, self._size)
        self._filled = 0

    def _write_some(self, content: memoryview) -> int:
        try:
            return os.write(self._descriptor, content)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            import fcntl

            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~self._direct)
            self._direct = 0
            return os.write(self._descriptor, content)
