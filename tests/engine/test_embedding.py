"""The embedding's gradient equals autograd's, and costs no matrix of zeros."""

import pytest
import torch
from torch import nn

from sartor.engine.embedding import rows_added_directly

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 1, 3, 0, 3]])


def gradient(embedding: nn.Embedding, *, directly: bool, rounds: int = 2) -> torch.Tensor:
    embedding.weight.grad = None
    torch.manual_seed(1)
    mix = torch.randn(embedding.embedding_dim, 4, dtype=torch.float64)
    with rows_added_directly(embedding, CPU if directly else torch.device("cuda")) as arranged:
        assert arranged is directly
        for _ in range(rounds):
            (embedding(IDS) @ mix).square().sum().backward()
    assert embedding.weight.grad is not None
    return embedding.weight.grad.clone()


@pytest.mark.parametrize("padding_idx", [None, 0, 3])
def test_gradients_equal_autograds_and_accumulate(padding_idx: int | None) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 5, padding_idx=padding_idx, dtype=torch.float64)
    nn.init.normal_(embedding.weight)
    torch.testing.assert_close(gradient(embedding, directly=True), gradient(embedding, directly=False))


def test_what_is_frozen_stays_frozen() -> None:
    embedding = nn.Embedding(6, 5)
    embedding.weight.requires_grad_(False)
    with rows_added_directly(embedding, CPU):
        assert not embedding(IDS).requires_grad
    assert embedding.weight.grad is None


def test_the_hook_is_gone_afterwards_also_after_an_error() -> None:
    embedding = nn.Embedding(6, 5)
    with pytest.raises(RuntimeError), rows_added_directly(embedding, CPU):
        raise RuntimeError
    assert not embedding._forward_hooks


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 3


@pytest.mark.parametrize("embedding", [Scaled(6, 5), nn.Embedding(6, 5, scale_grad_by_freq=True)])
def test_embeddings_that_do_more_than_look_up_are_left_to_autograd(embedding: nn.Embedding) -> None:
    with rows_added_directly(embedding, CPU) as arranged:
        assert not arranged


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_rows_of_a_frequent_token_are_not_lost_in_bfloat16(padding_idx: int | None) -> None:
    """One by one a thousand ones would be 256 in bfloat16."""
    embedding = nn.Embedding(6, 5, padding_idx=padding_idx, dtype=torch.bfloat16)
    ids = torch.tensor([[3] * 1_000 + [1, 5, 2]])
    with rows_added_directly(embedding, CPU):
        embedding(ids).sum().backward()
    counts = [0, 1, 0 if padding_idx == 2 else 1, 1_000, 0, 1]
    assert embedding.weight.grad is not None
    assert torch.equal(embedding.weight.grad.float(), torch.tensor(counts).float()[:, None].expand(6, 5))
