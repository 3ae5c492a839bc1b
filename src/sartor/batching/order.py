"""In which order a run visits its examples: pure functions of seed and epoch.

In: how many examples there are, a seed and an epoch.  Out: indices, and groups of them.  A cursor (epoch, position)
says all there is to say about where a run is.

The order is the one that trl's trainer would take: a permutation seeded with `epoch + seed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def epoch_order(
    num_examples: int,
    *,
    seed: int,
    epoch: int,
    strategy: str = "random",
    lengths: Sequence[int] = (),
    batch_size: int = 1,
) -> list[int]:
    """Indices of all examples in the order of one epoch.

    Args:
        seed: data_seed where it was given, else seed.
        strategy: "random", "sequential" or "group_by_length".
        lengths: tokens of each example; needed for "group_by_length".
        batch_size: examples of an optimizer batch; needed for "group_by_length".
    """
    if strategy == "sequential":
        return list(range(num_examples))
    generator = torch.Generator().manual_seed(seed + epoch)
    if strategy == "group_by_length":
        from transformers.trainer_pt_utils import get_length_grouped_indices

        return list(get_length_grouped_indices(list(lengths), batch_size, generator=generator))
    return torch.randperm(num_examples, generator=generator).tolist()


def device_batches(order: Sequence[int], batch_size: int, *, drop_last: bool = False) -> list[list[int]]:
    """Consecutive groups of `batch_size`; the last may be shorter, or is dropped.

    Example: order [3, 1, 0, 2, 4] with 2 gives [[3, 1], [0, 2], [4]].
    """
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


def optimizer_batches(batches: Sequence[list[int]], accumulation: int) -> Iterator[list[list[int]]]:
    """Groups of `accumulation` device batches; an epoch's last may be smaller, and is stepped on as it is.

    Example: [[3, 1], [0, 2], [4]] with 2 gives [[3, 1], [0, 2]] and [[4]].
    """
    for start in range(0, len(batches), accumulation):
        yield list(batches[start : start + accumulation])
