"""How an optimizer batch is cut into micro-batches: by tokens, whole documents, nothing lost and nothing twice.

In: the lengths of an optimizer batch's documents and a number of tokens.  Out: groups of indices, and from a group the
micro-batch itself.  The cut is free: the loss is a sum over the whole optimizer batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch

from sartor.errors import DataError
from sartor.records import Example, MicroBatch

# Distinguishes the documents of one example in their keys; more documents than this in one example cannot occur, since
# an example has fewer tokens.
_DOCUMENTS_PER_EXAMPLE = 1 << 24
_TRIES = 4
"""Numbers of groups that are tried below what filling them up gives."""


def cut_flat(lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Cut for flat rows: as few groups of at most `micro_batch_tokens` tokens as can be found, of even sizes.

    A longer example gets a micro-batch of its own.  Fewer groups are faster, since each reads all weights; even ones
    need less memory, which the largest decides.  No more groups come out than filling them up one after another gives.

    Example: lengths [5, 5, 5, 5] with 16 gives [[0, 2], [1, 3]], not [[0, 1, 2], [3]]; [9, 9, 7, 7] with 16 gives
    [[0, 2], [1, 3]], where filling up in order would take three.
    """
    too_long = [[index] for index, length in enumerate(lengths) if length > micro_batch_tokens]
    rest = [index for index, length in enumerate(lengths) if length <= micro_batch_tokens]
    rest.sort(key=lambda index: -lengths[index])
    groups = _even_groups(rest, lengths, micro_batch_tokens) if rest else []
    return sorted([*too_long, *map(sorted, groups)])


def _even_groups(descending: Sequence[int], lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Groups of examples, none of which is too long, in no order."""
    filled = min(
        (_filled_up(order, lengths, most_tokens) for order in (descending, sorted(descending))),
        key=len,
    )
    fewest = -(-sum(lengths[index] for index in descending) // most_tokens)
    for count in sorted({*range(fewest, min(fewest + _TRIES, len(filled))), len(filled)}):
        groups = _shared_out(descending, lengths, count)
        if max(sum(lengths[index] for index in group) for group in groups) <= most_tokens:
            return groups
    return filled


def _filled_up(order: Sequence[int], lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Each example into the first group that has room for it."""
    groups: list[list[int]] = []
    rooms: list[int] = []
    for index in order:
        number = next((number for number, room in enumerate(rooms) if room >= lengths[index]), len(groups))
        if number == len(groups):
            groups.append([])
            rooms.append(most_tokens)
        groups[number].append(index)
        rooms[number] -= lengths[index]
    return groups


def _shared_out(descending: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """The longest examples first, each into the group that holds least (Graham 1969, doi:10.1137/0117039)."""
    groups: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for index in descending:
        tokens, number = heap[0]
        groups[number].append(index)
        heapq.heapreplace(heap, (tokens + lengths[index], number))
    return groups


def cut_padded(
    lengths: Sequence[int], micro_batch_tokens: int, num_documents: Sequence[int] | None = None
) -> list[list[int]]:
    """Cut for padded rows: documents of similar length together, rows x longest at most `micro_batch_tokens`.

    Args:
        lengths: of each example's longest document.
        micro_batch_tokens: a single example may be larger; it goes alone.
        num_documents: rows that each example makes: a packed block makes one per document.  None: one each.

    Example: lengths [2, 9, 3, 10] with 20 gives [[3, 1], [2, 0]]: 20 and 6 padded tokens.
    """
    rows = num_documents if num_documents is not None else [1] * len(lengths)
    groups: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or (filled + rows[index]) * lengths[groups[-1][0]] > micro_batch_tokens:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += rows[index]
    return groups


def split_documents(example: Example) -> list[Example]:
    """A packed block's documents, each an example of its own; another example as it is.

    Example: ids [5, 6, 7] with lengths (2, 1) give [5, 6] and [7].
    """
    if len(example.seq_lengths) < 2:
        return [example]
    parts, start = [], 0
    for length in example.seq_lengths:
        rows = slice(start, start + length)
        parts.append(Example(example.input_ids[rows], example.labels[rows], weights=example.weights[rows]))
        start += length
    return parts


def make_micro_batch(
    examples: Sequence[Example],
    keys: Sequence[int],
    device: torch.device | None = None,
    first_documents: Sequence[int] | None = None,
) -> MicroBatch:
    """Lay examples end to end; targets are shifted once, within each document.

    Args:
        examples: packed ones bring the lengths of their documents; which tokens are targets, `Example.is_target` says.
        keys: an integer per example that names it whatever the cut; its index in the data set.
        device: where to put it.
        first_documents: for each example that is a part of a packed block, how many of its documents come before.

    Raises:
        DataError: weights that are negative or not finite.

    Example: two documents [7, 8, 9] (all trained) and [4, 5] (5 trained) make the row [7, 8, 9, 4, 5] with positions
    [0, 1, 2, 0, 1]; rows 0, 1 and 3 predict 8, 9 and 5.  Row 2 predicts nothing: the next document is not its future.
    """
    lengths: list[int] = []
    document_keys: list[int] = []
    before = first_documents or [0] * len(examples)
    for example, key, first in zip(examples, keys, before, strict=True):
        documents = example.document_lengths
        lengths.extend(documents)
        document_keys.extend(int(key) * _DOCUMENTS_PER_EXAMPLE + first + ordinal for ordinal in range(len(documents)))
    ids_T = torch.cat([torch.as_tensor(example.input_ids, dtype=torch.int64) for example in examples])
    labels_T = torch.cat([torch.as_tensor(example.labels, dtype=torch.int64) for example in examples])
    lengths_D = torch.tensor(lengths)
    starts_D = lengths_D.cumsum(0) - lengths_D
    positions_T = torch.arange(ids_T.shape[0]) - torch.repeat_interleave(starts_D, lengths_D)
    weights_T = _weights(examples, keys)
    is_target_T = torch.from_numpy(np.concatenate([example.is_target for example in examples]))
    target_rows_N = is_target_T.nonzero().squeeze(1) - 1
    targets_N = labels_T[target_rows_N + 1]
    return MicroBatch(
        ids_T.to(device),
        positions_T.to(device),
        tuple(lengths),
        target_rows_N.to(device),
        targets_N.to(device),
        tuple(document_keys),
        None if weights_T is None else weights_T[target_rows_N + 1].to(device),
    )


def _weights(examples: Sequence[Example], keys: Sequence[int]) -> torch.Tensor | None:
    """The examples' weights end to end, float32; 1 for those without, and None where none of them brings any.

    Raises:
        DataError: a weight is negative or not finite; prepared data is checked before, a transform's rows are not.
    """
    if not any(len(example.weights) for example in examples):
        return None
    parts = []
    for example, key in zip(examples, keys, strict=True):
        given = example.weights if len(example.weights) else [1.0] * len(example.input_ids)
        part = torch.as_tensor(given, dtype=torch.float32)
        if part.shape[0] != len(example.input_ids) or not (part >= 0).all() or not part.isfinite().all():
            raise DataError(
                f"row {key} (from 0): `weights` must be a number from 0 on for each of its {len(example.input_ids)} "
                "tokens."
            )
        parts.append(part)
    return torch.cat(parts)
