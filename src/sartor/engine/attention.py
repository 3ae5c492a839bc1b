"""Attention that runs per document of a flat row, registered with transformers under the name `sartor_documents`.

In: queries, keys and values of a flat row, 1 x heads x T x width, and the documents' lengths, which the decoder passes
through to its layers as a keyword.  Out: what the model's own attention would return for each document alone.  It
honours scaling, dropout, grouped keys and sliding windows; models that need more (soft-caps, sinks) are not given to it
(see traits.OWN_ATTENTION_TYPES).

Example: document lengths (3, 2) make two calls of causal attention, on rows 0 to 2 and 3 to 4: no row of the second
document ever meets one of the first, and no T x T mask exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sartor import compat
from sartor.compat import registered_in

NAME = "sartor_documents"


class DocumentLengths:
    """Lengths of a flat row's documents, on their way through a decoder.

    Compiled layers hand an object on without looking into it; of a plain tuple they would be compiled anew for each.
    """

    __slots__ = ("tokens",)

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens


def documents_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    document_lengths: DocumentLengths,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a flat row.

    Args:
        module: the attention layer (unused; transformers' interface passes it).
        query: 1 x heads x T x width; `key` and `value` may have fewer heads.
        key: as `query`.
        value: as `query`.
        attention_mask: always None: the lengths say all.
        dropout: share of attention weights that is dropped; the layer passes 0 outside of training.
        scaling: of the scores; None: 1 / sqrt(width).
        sliding_window: tokens, itself included, that a token sees; None: all before it.
        document_lengths: lengths that add up to T.
        kwargs: what else transformers passes to its attention functions (positions, flags of its own kernels).

    Returns:
        1 x T x heads x width, as transformers' attention functions do, and no weights.
    """
    lengths = list(document_lengths.tokens)
    grouped = key.shape[1] != query.shape[1]
    # split, not slices: the backward pass of D slices would make D gradients of the whole row
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    outputs = []
    for query_part, key_part, value_part in parts:
        length = query_part.shape[2]
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = window_mask(length, sliding_window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query_part,
                key_part,
                value_part,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Boolean length x length, True where a query sees a key: the last `window` tokens, itself included.

    Example: length 4, window 2 lets token 3 see tokens 2 and 3.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


@contextmanager
def registered(*, between_programs: bool = False) -> Iterator[None]:
    """Within the block transformers knows `sartor_documents`, whose masks are None; afterwards what it knew before.

    Args:
        between_programs: torch.compile leaves it alone, and compiles what comes before and after it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    function = torch.compiler.disable(documents_attention) if between_programs else documents_attention
    with ExitStack() as undo:
        for interface, new in ((AttentionInterface, function), (AttentionMaskInterface, _no_mask)):
            undo.callback(_put_back, interface, registered_in(interface).get(NAME))
            interface.register(NAME, new)
        yield


def _put_back(interface: Any, before: Any) -> None:
    """transformers has a method to register, and none to take back; masks are looked up in this very mapping."""
    if before is None:
        registered_in(interface).pop(NAME, None)
    else:
        interface.register(NAME, before)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def attention_implementation(model: Any, name: str) -> Iterator[None]:
    """Run a transformers model with another attention implementation, and put its own back: `generate()` needs it."""
    before = compat.attention_of(model.config)
    if name == before:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
