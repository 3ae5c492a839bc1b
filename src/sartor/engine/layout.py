"""How documents are laid out for the model, and the probe that decides it.

In: a micro-batch (flat row).  Out: the keyword arguments of the model's decoder, and the hidden states as a flat row
again.

The truth is the model's default implementation run on one document at a time with `use_cache=False`.  `choose_layout`
tries the layouts from the fastest on, and takes the first that reproduces the truth on two short documents, and under
which document 2 does not move when document 1 changes.  An architecture that ignores positions in its mask, or mixes
tokens by convolution or a state, fails the flat layouts and is padded.  Example: document lengths (2, 3) padded are the
rows [a b 0] and [c d e]; tokens c d e of the flat row's places 2, 3, 4 lie at 3, 4, 5 of the padded rows end to end.

Shape suffixes: T flat tokens, D documents, B padded rows (= D), L padded length, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sartor.engine import attention as own_attention
from sartor.engine.traits import ModelTraits, base_model, decoder, evaluating
from sartor.errors import ModelError
from sartor.records import Layout, MicroBatch

# Largest relative difference to the truth that the probe lets pass; rounding alone gives 1e-6 in float32 and 1e-2 in
# bfloat16 on deep models, a leaking document 1e-1 and more.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
# Where documents are apart, changing one moves no token of the other by a single bit (experts that share a product may
# round otherwise); a leak through a short convolution with freshly made weights moves the first tokens by 1e-2.
LEAK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 1e-3}


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """What the probe found."""

    layout: Layout
    attention: str
    reason: str


def model_inputs(micro: MicroBatch, layout: Layout, traits: ModelTraits) -> dict[str, Any]:
    """Keyword arguments for the decoder's forward."""
    if layout is Layout.PADDED:
        is_real_BL = _is_real(micro)
        ids_BL = torch.zeros(is_real_BL.shape, dtype=torch.int64, device=micro.input_ids_T.device)
        ids_BL.view(-1)[_padded_rows(micro)] = micro.input_ids_T
        return {"input_ids": ids_BL, "attention_mask": is_real_BL.long(), "use_cache": False}
    inputs: dict[str, Any] = {"input_ids": micro.input_ids_T[None], "use_cache": False}
    if traits.accepts_positions:
        inputs["position_ids"] = micro.position_ids_T[None]
    if layout is Layout.FLAT_DOCUMENTS:
        # lengths as numbers beside transformers' tensors: reading a tensor back in every layer would wait for a GPU
        inputs["document_lengths"] = own_attention.DocumentLengths(micro.document_lengths)
    elif layout is Layout.FLAT_MASK:
        inputs["attention_mask"] = _block_mask(micro, traits)
    return inputs


def flat_hidden(hidden: torch.Tensor, micro: MicroBatch, layout: Layout) -> torch.Tensor:
    """The decoder's output, T x H: the flat row again, whatever the layout was."""
    if layout is Layout.PADDED:
        return hidden.flatten(0, 1).index_select(0, _padded_rows(micro))
    return hidden[0]


def target_hidden(hidden: torch.Tensor, micro: MicroBatch, layout: Layout) -> torch.Tensor:
    """The decoder's output where the next token is trained, N x H, without a copy of the whole row."""
    rows_N = micro.target_rows_N
    if layout is Layout.PADDED:
        rows_N = _padded_rows(micro).index_select(0, rows_N)
    return hidden.flatten(0, 1).index_select(0, rows_N)


def _padded_rows(micro: MicroBatch) -> torch.Tensor:
    """T: where each token of the flat row lies in the padded rows, taken end to end."""
    device = micro.input_ids_T.device
    lengths_D = torch.tensor(micro.document_lengths, device=device)
    starts_D = torch.arange(len(micro.document_lengths), device=device) * max(micro.document_lengths)
    # with its size given, nothing is read back from a GPU
    return torch.repeat_interleave(starts_D, lengths_D, output_size=micro.num_tokens) + micro.position_ids_T


def _is_real(micro: MicroBatch) -> torch.Tensor:
    """B x L, True where a padded row holds a token of its document: documents are padded on the right."""
    device = micro.input_ids_T.device
    lengths_B = torch.tensor(micro.document_lengths, device=device)
    return torch.arange(max(micro.document_lengths), device=device)[None, :] < lengths_B[:, None]


def _block_mask(micro: MicroBatch, traits: ModelTraits) -> Any:
    """1 x 1 x T x T, block-diagonal and causal; one per kind of layer where the model has kinds."""
    device = micro.input_ids_T.device
    lengths_D = torch.tensor(micro.document_lengths, device=device)
    documents_D = torch.arange(len(lengths_D), device=device)
    document_T = torch.repeat_interleave(documents_D, lengths_D, output_size=micro.num_tokens)
    row_T = torch.arange(micro.num_tokens, device=device)
    distance_TT = row_T[:, None] - row_T[None, :]
    sees_TT = (document_T[:, None] == document_T[None, :]) & (distance_TT >= 0)
    masks = {"full_attention": sees_TT}
    if traits.sliding_window is not None:
        masks["sliding_attention"] = sees_TT & (distance_TT < traits.sliding_window)
    as_model_wants = {kind: _additive(mask, traits.attention)[None, None] for kind, mask in masks.items()}
    if traits.layer_types:
        return {kind: as_model_wants.get(kind, as_model_wants["full_attention"]) for kind in set(traits.layer_types)}
    return as_model_wants["sliding_attention" if traits.sliding_window is not None else "full_attention"]


def _additive(sees_TT: torch.Tensor, attention: str) -> torch.Tensor:
    """Eager attention adds its mask; `sdpa` takes booleans."""
    if attention != "eager":
        return sees_TT
    return torch.zeros(sees_TT.shape, device=sees_TT.device).masked_fill_(~sees_TT, torch.finfo(torch.float32).min)


def candidates(traits: ModelTraits) -> tuple[Layout, ...]:
    """Layouts worth trying, from the fastest on.

    A flat row costs T x T scores wherever the mask is explicit, which `eager` attention holds in memory for every head:
    there padding is cheaper.  Masks that `_block_mask` cannot draw are left out here, since documents as short as the
    probe's may not show it: Llama 4's chunks are thousands of tokens long.
    """
    flat: tuple[Layout, ...] = (Layout.FLAT_POSITIONS,)
    if traits.has_drawn_mask:
        flat = (*flat, Layout.FLAT_MASK)
    if traits.honoured_by_own_attention:
        return (Layout.FLAT_DOCUMENTS, *flat, Layout.PADDED)
    if traits.attention == "eager":
        return (Layout.PADDED, *flat)
    return (*flat, Layout.PADDED)


@torch.no_grad()
def choose_layout(model: nn.Module, traits: ModelTraits) -> LayoutChoice:
    """Run the probe; the model is left as it was, and torch's random numbers too.

    Raises:
        ModelError: no layout reproduces the model's own result on one document at a time.
    """
    tried: list[str] = []
    with evaluating(model):
        documents, changed = _probe_documents(traits, next(model.parameters()).device)
        truth = [_hidden(model, traits, _micro([document]), Layout.PADDED, plain=True) for document in documents]
        for layout in candidates(traits):
            problem = layout_problem(model, traits, layout, documents, changed, truth)
            if problem is None:
                name = own_attention.NAME if layout is Layout.FLAT_DOCUMENTS else traits.attention
                reason = f"{layout.value}: equal to one document at a time in the probe"
                if tried:
                    reason += "; not " + ", not ".join(tried)
                return LayoutChoice(layout, name, reason)
            tried.append(f"{layout.value} ({problem})")
    raise ModelError(
        f"no layout isolates documents in {traits.model_type}: {'; '.join(tried)}. "
        "This architecture cannot be trained correctly here yet."
    )


def _probe_documents(traits: ModelTraits, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two short documents (longer than a short window), and another first one of the same length."""
    generator = torch.Generator().manual_seed(0)
    long = max(7, min((traits.sliding_window or 0) + 3, 40))

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(0, traits.vocabulary_size, (length,), generator=generator).to(device)

    return [tokens(5), tokens(long)], tokens(5)


def layout_problem(
    model: nn.Module,
    traits: ModelTraits,
    layout: Layout,
    documents: Sequence[torch.Tensor],
    changed: torch.Tensor,
    truth: Sequence[torch.Tensor],
) -> str | None:
    """Why a layout cannot be used, in a few words; None where it can.

    Args:
        model: in evaluation mode.
        traits: its.
        layout: to try.
        documents: two, ids each.
        changed: another first document of the same length.
        truth: hidden states of the two documents alone.
    """
    try:
        found_TH = _hidden(model, traits, _micro(documents), layout)
        moved_TH = _hidden(model, traits, _micro([changed, documents[1]]), layout)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        return f"it raises {type(error).__name__}"
    tolerance = PROBE_TOLERANCE.get(found_TH.dtype, 5e-2)
    first = len(documents[0])
    if _largest_difference(moved_TH[first:], found_TH[first:]) > LEAK_TOLERANCE.get(found_TH.dtype, 2e-3):
        return "documents leak into each other"
    if _difference(found_TH, torch.cat(list(truth))) > tolerance:
        return "its result differs from one document at a time"
    return None


def _difference(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((found.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


def _largest_difference(found_TH: torch.Tensor, truth_TH: torch.Tensor) -> float:
    """The same for the token where it is largest: a short convolution leaks into a document's first tokens alone."""
    distances_T = (found_TH.double() - truth_TH.double()).norm(dim=-1)
    return float((distances_T / truth_TH.double().norm(dim=-1).clamp(min=1e-30)).max())


def _micro(documents: Sequence[torch.Tensor]) -> MicroBatch:
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        torch.cat(list(documents)),
        torch.cat([torch.arange(len(document), device=document.device) for document in documents]),
        tuple(len(document) for document in documents),
        none,
        none,
        tuple(range(len(documents))),
    )


def _hidden(
    model: nn.Module, traits: ModelTraits, micro: MicroBatch, layout: Layout, *, plain: bool = False
) -> torch.Tensor:
    """Hidden states T x H of one micro-batch; `plain`: a single document with nothing but its ids, the truth."""
    inputs = (
        {"input_ids": micro.input_ids_T[None], "use_cache": False} if plain else model_inputs(micro, layout, traits)
    )
    name = own_attention.NAME if layout is Layout.FLAT_DOCUMENTS else traits.attention
    with own_attention.registered(), own_attention.attention_implementation(base_model(model), name):
        hidden = decoder(model)(**inputs).last_hidden_state
    return flat_hidden(hidden, micro, layout)
