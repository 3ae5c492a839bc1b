"""NEFTune: uniform noise on the embeddings of training documents.

Jain et al. 2023, section 2, https://huggingface.co/papers/2310.05914.

In: embeddings of a micro-batch.  Out: the same with noise.  A document's noise is scaled by alpha / sqrt(length x
width), its own length and not the row's, and drawn from a generator keyed by seed, step and document: however the batch
is cut and laid out, a document gets the same noise, and torch's global generator is left alone.
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
        embeddings: 1 x T x H for flat layouts, D x L x H for the padded one; padding gets no noise.
        micro: the documents' lengths and keys.
        layout: how they lie in `embeddings`.
        alpha: the paper's alpha, usually 5.
        seed: of the run.
        step: of the optimizer; every step draws anew.

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
    """length x width float32 on the CPU, uniform in +-alpha / sqrt(length x width), from a generator of its own."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    bound = alpha / (length * width) ** 0.5
    return torch.empty(length, width).uniform_(-bound, bound, generator=generator)
