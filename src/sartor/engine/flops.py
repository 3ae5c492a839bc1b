"""Floating point operations of a step, and what the device can do.

A step's operations are counted as in Kaplan et al. 2020 (https://huggingface.co/papers/2001.08361, section 2.1): 6 per
weight of the layers and token, 6 per weight of the head and *target* (the only rows the head is applied to), and
attention.  Recomputation is not counted: it is work, not progress.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from sartor.device import synchronize
from sartor.engine.traits import ModelTraits


def step_flops(traits: ModelTraits, document_lengths: Iterable[int], num_targets: int) -> float:
    """Operations of forward and backward over these documents.

    Causal attention of a document of length L costs 12 * features * L * L / 2 per layer.
    """
    lengths = list(document_lengths)
    layers = 6.0 * traits.num_non_embedding_parameters * sum(lengths)
    head = 6.0 * traits.hidden_size * traits.vocabulary_size * num_targets
    attention = 6.0 * traits.num_layers * traits.num_attention_features * sum(length * length for length in lengths)
    return layers + head + attention


def measured_matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 3) -> float:
    """Best rate in FLOP/s of a few square matrix products: what this device does now, in this dtype.

    The numbers are random, since a processor may run faster on equal ones, and drawn without touching torch's own
    generator.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats + 1):  # the first is a warm-up, and is the slowest
        start = time.perf_counter()
        _ = left @ right
        synchronize(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best
