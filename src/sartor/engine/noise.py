"""NEFTune: uniform noise on the embeddings of training documents (Jain et al. 2023, https://huggingface.co/papers/2310.05914).

The noise of a document is scaled by alpha / sqrt(length x width), its own length, not the row's, and drawn from a generator keyed by seed,
step and document: however the batch is cut and laid out, a document gets the same noise.
"""

from __future__ import annotations

import hashlib

import torch

from sartor.records import Layout, MicroBatch


def add_noise(
    embeddings: torch.Tensor, micro: MicroBatch, layout: Layout, *, alpha: float, seed: int, step: int
) -> torch.Tensor:
    """Embeddings plus noise.

    Args:
        embeddings: 1 x T x H for flat layouts, D x L x H for the padded one.
        alpha: the paper's alpha, usually 5.

    Returns:
        A tensor of the same shape and dtype.
    """
    width = embeddings.shape[-1]
    noise = torch.zeros_like(embeddings)
    start = 0
    for row, (length, key) in enumerate(zip(micro.document_lengths, micro.document_keys, strict=True)):
        document_noise = _document_noise(length, width, alpha, (seed, step, key)).to(noise.device, noise.dtype)
        if layout is Layout.PADDED:
            noise[row, :length] = document_noise
        else:
            noise[0, start : start + length] = document_noise
        start += length
    return embeddings + noise


def _document_noise(length: int, width: int, alpha: float, key: tuple[int, int, int]) -> torch.Tensor:
    """length x width, uniform in +-alpha / sqrt(length x width), from a generator of its own on the CPU."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    bound = alpha / (length * width) ** 0.5
    return torch.empty(length, width).uniform_(-bound, bound, generator=generator)
