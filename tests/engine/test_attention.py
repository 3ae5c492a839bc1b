"""Attention per document: causal, windowed, scaled, grouped, and nothing across documents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sartor.engine import attention
from sartor.engine.attention import DocumentLengths, documents_attention, window_mask


def weights(lengths: tuple[int, ...], **options: float | int) -> torch.Tensor:
    """T x T attention weights, read off with values that are the unit vectors."""
    total = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, total, 4, generator=generator)
    value = torch.eye(total)[None, None]
    documents = DocumentLengths(lengths)
    found, none = documents_attention(nn.Identity(), query, key, value, None, document_lengths=documents, **options)  # type: ignore[arg-type]
    assert none is None
    return found[0, :, 0]


def test_window_mask_by_hand() -> None:
    assert window_mask(4, 2, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 9])
def test_a_token_sees_its_document_up_to_itself_within_the_window(window: int | None) -> None:
    lengths = (3, 1, 5)
    expected = torch.zeros(9, 9)
    start = 0
    for length in lengths:
        for token in range(length):
            first = 0 if window is None else max(0, token - window + 1)
            expected[start + token, start + first : start + token + 1] = 1
        start += length

    found = weights(lengths, sliding_window=window)

    assert torch.equal((found > 0).float(), expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(9))


def test_scaling_is_honoured() -> None:
    flat, sharp = weights((5,), scaling=1e-6), weights((5,), scaling=100.0)

    torch.testing.assert_close(flat[4], torch.full((5,), 0.2), atol=1e-4, rtol=0)
    assert float(sharp[4].max()) > 0.99


def test_without_scaling_it_is_one_over_the_root_of_the_width() -> None:
    torch.testing.assert_close(weights((5,)), weights((5,), scaling=1 / math.sqrt(4)))


@pytest.mark.parametrize("lengths", [(3, 4), (3, 3), (1, 1)])  # other than the heads, as many, and as many as of keys
def test_grouped_keys_equal_repeated_keys(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, sum(lengths), 4, generator=generator)
    key, value = torch.randn(2, 1, 2, sum(lengths), 4, generator=generator)
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (key, value)]

    for window in (None, 2):
        options = {"document_lengths": DocumentLengths(lengths), "sliding_window": window}
        grouped, _ = documents_attention(nn.Identity(), query, key, value, None, **options)  # type: ignore[arg-type]
        plain, _ = documents_attention(nn.Identity(), query, *repeated, None, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(grouped, plain)


def test_dropout_drops_and_rescales() -> None:
    torch.manual_seed(0)
    kept = weights((6,), dropout=0.5)
    plain = weights((6,))

    dropped = (kept == 0) & (plain > 0)
    assert dropped.any()
    torch.testing.assert_close(kept[~dropped], 2 * plain[~dropped])


def test_dropout_of_the_model_reaches_it_in_training_only() -> None:
    from tests.engine.architectures import make
    from tests.engine.batches import documents, engine, micro_batches

    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    run = engine(model)
    micro = micro_batches(documents(), 99)[0]

    def loss() -> float:
        with run.running():
            return float(run.measure(micro).loss_sum)

    torch.manual_seed(1)
    first, second = loss(), loss()
    assert first != second
    model.eval()
    assert loss() == loss()


def test_lengths_that_do_not_add_up_are_an_error() -> None:
    query = torch.randn(1, 1, 5, 4)

    with pytest.raises(RuntimeError):
        documents_attention(nn.Identity(), query, query, query, None, document_lengths=DocumentLengths((2, 2)))


def test_transformers_knows_it_within_the_block_alone() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with attention.registered(between_programs=True):
        outer = ALL_ATTENTION_FUNCTIONS[attention.NAME]
        with attention.registered():
            assert ALL_ATTENTION_FUNCTIONS[attention.NAME] is documents_attention
        assert ALL_ATTENTION_FUNCTIONS[attention.NAME] is outer is not documents_attention
        assert attention.NAME in ALL_MASK_ATTENTION_FUNCTIONS
    assert attention.NAME not in ALL_ATTENTION_FUNCTIONS
    assert attention.NAME not in ALL_MASK_ATTENTION_FUNCTIONS
