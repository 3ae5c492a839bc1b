"""Each objective gives, by the one-pass loss and from full logits, the loss and the gradient of its formula."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn

from sartor.config import SFTConfig
from sartor.config.checks import CHOICES
from sartor.engine.loss import LossForm, linear_cross_entropy
from sartor.engine.objectives import NLL, TOKEN_LOSSES, Objective
from sartor.records import IGNORE_INDEX, EngineSettings

VOCABULARY, BATCH_TARGETS = 7, 11
LABELS = torch.tensor([[3, 5, IGNORE_INDEX, 0, 6], [1, IGNORE_INDEX, 2, IGNORE_INDEX, IGNORE_INDEX], [4, 4, 4, 4, 4]])
OBJECTIVES = [Objective(kind, smoothing) for kind in TOKEN_LOSSES for smoothing in (0.0, 0.3)]


def logits_of(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(*LABELS.shape, VOCABULARY, generator=generator, dtype=torch.float64)).to(dtype)


def by_definition(logits: torch.Tensor, objective: Objective) -> tuple[float, torch.Tensor]:
    """Loss, and gradient with respect to the logits, in float64: one target at a time, no autograd."""
    gradient, total = torch.zeros_like(logits, dtype=torch.float64), 0.0
    for row, place in (LABELS[:, 1:] != IGNORE_INDEX).nonzero().tolist():
        probabilities = logits[row, place].double().softmax(-1)
        target = int(LABELS[row, place + 1])
        share = torch.full((VOCABULARY,), objective.label_smoothing / VOCABULARY, dtype=torch.float64)
        share[target] += 1 - objective.label_smoothing
        weight = {"nll": 1.0, "dft": float(probabilities[target])}[objective.loss_type]
        total += weight * float(-(share * probabilities.log()).sum())
        gradient[row, place] = weight * (probabilities - share)
    return total / BATCH_TARGETS, gradient / BATCH_TARGETS


def from_full_logits(logits: torch.Tensor, objective: Objective) -> tuple[float, torch.Tensor]:
    """As users' own losses get it: autograd runs over the logits."""
    leaf = logits.clone().requires_grad_()
    loss = objective.mean_loss(leaf, LABELS, torch.tensor(BATCH_TARGETS))
    loss.backward()
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad


def in_one_pass(logits: torch.Tensor, objective: Objective) -> tuple[float, torch.Tensor]:
    """As the engine computes it: the head hands the hidden states through, so their gradient is the logits'."""
    head = nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=logits.dtype)
    nn.init.eye_(head.weight)
    rows, places = (LABELS[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    sums, found = linear_cross_entropy(
        logits[rows, places],
        head,
        LABELS[rows, places + 1],
        LossForm(objective),
        grad_scale=1 / BATCH_TARGETS,
        chunk_rows=3,
        compute_dtype=logits.dtype,
    )
    assert found is not None
    gradient = torch.zeros_like(logits)
    gradient[rows, places] = found
    return float(sums.loss_sum) / BATCH_TARGETS, gradient


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("path", [from_full_logits, in_one_pass])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
def test_loss_and_gradient_are_those_of_the_formula(
    path: object, objective: Objective, dtype: torch.dtype, tolerance: float
) -> None:
    """Measured in float32: 2e-7; a weight that is not held constant, or a wrong share, is off by 1e-2."""
    assert callable(path)
    logits = logits_of(dtype)
    expected, truth = by_definition(logits, objective)

    loss, gradient = path(logits, objective)

    assert loss == pytest.approx(expected, rel=tolerance)
    assert float((gradient.double() - truth).norm() / truth.norm()) < tolerance


@pytest.mark.parametrize("kind", TOKEN_LOSSES)
def test_the_factor_is_the_derivative_of_the_loss(kind: str) -> None:
    """Flat rows take their gradient with the factor, own losses by autograd: both must be the same."""
    cross_entropy = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64, requires_grad=True)

    loss, factor = TOKEN_LOSSES[kind](cross_entropy, cross_entropy)

    assert torch.equal(torch.autograd.grad(loss.sum(), cross_entropy)[0], factor.detach())
    assert not factor.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_without_a_number_it_is_the_mean_over_the_targets_there(objective: Objective) -> None:
    logits = logits_of(torch.float64)
    num_targets = int((LABELS[:, 1:] != IGNORE_INDEX).sum())

    mean = objective.mean_loss(logits, LABELS, None)

    assert torch.equal(mean, objective.mean_loss(logits, LABELS, num_targets))
    assert torch.equal(objective.mean_loss(logits.bfloat16(), LABELS, None).isfinite(), torch.tensor(True))
    assert objective.mean_loss(logits.bfloat16(), LABELS, None).dtype == torch.float32


@pytest.mark.parametrize("number", [None, torch.tensor(BATCH_TARGETS)], ids=str)
def test_smoothed_full_logits_equal_transformers_label_smoother(number: torch.Tensor | None) -> None:
    """Which averages over the vocabulary in another order: measured 1e-7, in loss and gradient."""
    from transformers.trainer_pt_utils import LabelSmoother

    ours, theirs = (logits_of(torch.float32).requires_grad_() for _ in range(2))

    loss = Objective(label_smoothing=0.3).mean_loss(ours, LABELS, number)
    expected = LabelSmoother(0.3)({"logits": theirs}, LABELS, shift_labels=True, num_items_in_batch=number)

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradient, truth = (torch.autograd.grad(one, leaf)[0] for one, leaf in ((loss, ours), (expected, theirs)))
    assert float((gradient - truth).norm() / truth.norm()) < 1e-6


def test_without_any_target_there_is_no_loss_to_go_on_with() -> None:
    """As with transformers' losses: what is not a number stops the run, a 0 would train nothing in silence."""
    nothing = torch.full_like(LABELS, IGNORE_INDEX)
    assert all(one.mean_loss(logits_of(torch.float32), nothing, None).isnan() for one in OBJECTIVES)


def test_options_name_objectives() -> None:
    """What may be asked for is what there is; `chunked_nll` is trl's older name of `nll`."""
    choices = next(field.metadata["choices"] for field in fields(SFTConfig) if field.name == "loss_type")
    assert set(TOKEN_LOSSES) == set(CHOICES["loss_type"]) == set(choices) - {"chunked_nll"}
    assert Objective.of(EngineSettings()) == NLL
    assert NLL.is_plain
    settings = EngineSettings(loss_type="dft", label_smoothing=0.25)
    assert Objective.of(settings) == Objective("dft", 0.25)
    assert not Objective.of(settings).is_plain
