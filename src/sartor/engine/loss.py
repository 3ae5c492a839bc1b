"""Chunked linear cross-entropy: the loss over target positions, its gradients in the same pass, and never the full logits.

In: hidden states of the target positions (N x H), the output head, the trained tokens (N).  Out: sums of loss, entropy and correct
first choices, and the gradient with respect to the hidden states; gradients of the head's own parameters are added to their
`.grad`.  What it keeps true: only C x V logits exist at a time (C rows of a chunk), sums and reductions are float32 whatever the
compute dtype, and any chunking gives the same result up to rounding.

The scale of the gradient is known before the pass (1 / targets in the optimizer batch), so the backward pass needs no second visit
to the logits: with p = softmax(z), the gradient of -log p[y] is p - onehot(y).

Shape suffixes: N target tokens, H hidden width, V vocabulary, C rows of a chunk (see records.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sartor.records import LossSums


@dataclass(frozen=True, slots=True)
class LossForm:
    """Which function of the log-probabilities is minimised."""

    label_smoothing: float = 0.0
    """epsilon of (1 - epsilon) * nll + epsilon * mean over the vocabulary (Szegedy et al. 2015, https://huggingface.co/papers/1512.00567)."""
    dft: bool = False
    """Weigh each token's loss by its own probability, held constant (https://huggingface.co/papers/2508.05629)."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    head: nn.Module,
    targets_N: torch.Tensor,
    form: LossForm,
    *,
    grad_scale: float | None,
    chunk_rows: int,
    compute_dtype: torch.dtype,
) -> tuple[LossSums, torch.Tensor | None]:
    """Sum the loss of `targets_N` under `head(hidden_NH)`, and take gradients in the same pass.

    Args:
        hidden_NH: hidden states whose next token is trained.
        head: the output head; a plain `nn.Linear` takes the fast path, any other module (an adapter on the head) is called per chunk.
        targets_N: int64.
        form: what is minimised.
        grad_scale: d(objective)/d(loss sum), usually loss scale / targets in the optimizer batch; None: no gradients.
        chunk_rows: C, rows of logits that exist at a time.
        compute_dtype: dtype of the matrix products; everything after them is float32.

    Returns:
        The sums, and the gradient with respect to `hidden_NH` in its dtype (None where `grad_scale` is None).
    """
    grad_hidden_NH = torch.empty_like(hidden_NH) if grad_scale is not None else None
    zero = hidden_NH.new_zeros((), dtype=torch.float32)
    sums = LossSums(zero, zero, zero, 0)
    plain = type(head) is nn.Linear
    weight_VH = head.weight.detach().to(compute_dtype) if plain else None  # type: ignore[operator]
    for start in range(0, targets_N.shape[0], chunk_rows):
        rows = slice(start, start + chunk_rows)
        hidden_CH = hidden_NH[rows].detach()
        targets_C = targets_N[rows]
        if plain:
            logits_CV = hidden_CH.to(compute_dtype) @ weight_VH.T  # type: ignore[union-attr]
            if head.bias is not None:
                logits_CV += head.bias.detach().to(compute_dtype)
            part, grad_logits_CV = _chunk(logits_CV, targets_C, form, grad_scale)
            if grad_logits_CV is not None:
                grad_hidden_NH[rows] = _plain_backward(head, weight_VH, hidden_CH, grad_logits_CV, compute_dtype)  # type: ignore[index]
        else:
            part = _called_chunk(head, hidden_CH, targets_C, form, grad_scale, grad_hidden_NH, rows)
        sums = sums + part
    return sums, grad_hidden_NH


def _plain_backward(
    head: nn.Module,
    weight_VH: torch.Tensor | None,
    hidden_CH: torch.Tensor,
    grad_logits_CV: torch.Tensor,
    compute_dtype: torch.dtype,
) -> torch.Tensor:
    """Gradients of `hidden @ weight.T + bias`: returns the hidden states', adds the parameters' to their `.grad`."""
    if head.bias is not None and head.bias.requires_grad:
        _add_to_grad(head.bias, grad_logits_CV.sum(0))  # type: ignore[arg-type]
    grad_logits_CV = grad_logits_CV.to(compute_dtype)
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    if weight.requires_grad:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        hidden_CH = hidden_CH.to(compute_dtype)
        if weight.grad.dtype == compute_dtype:
            weight.grad.addmm_(grad_logits_CV.T, hidden_CH)
        else:
            weight.grad += grad_logits_CV.T @ hidden_CH
    return grad_logits_CV @ weight_VH  # type: ignore[operator]


def _called_chunk(
    head: nn.Module,
    hidden_CH: torch.Tensor,
    targets_C: torch.Tensor,
    form: LossForm,
    grad_scale: float | None,
    grad_hidden_NH: torch.Tensor | None,
    rows: slice,
) -> LossSums:
    """A chunk through a head that is more than one matrix: autograd runs over the head alone, one chunk at a time."""
    if grad_scale is None:
        return _chunk(head(hidden_CH), targets_C, form, None)[0]
    with torch.enable_grad():
        leaf_CH = hidden_CH.requires_grad_()
        logits_CV = head(leaf_CH)
    part, grad_logits_CV = _chunk(logits_CV.detach(), targets_C, form, grad_scale)
    torch.autograd.backward(logits_CV, grad_logits_CV.to(logits_CV.dtype))  # type: ignore[union-attr]
    grad_hidden_NH[rows] = leaf_CH.grad  # type: ignore[index]
    return part


def _chunk(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, form: LossForm, grad_scale: float | None
) -> tuple[LossSums, torch.Tensor | None]:
    """Sums and the gradient with respect to the head's raw output, for one chunk of logits.

    Written with in-place operations on two C x V float32 buffers: `logsumexp` and `softmax` would each copy their input.
    """
    z_CV = logits_CV.float()
    if form.logit_scale != 1.0:
        z_CV = z_CV * form.logit_scale
    if form.logit_softcap is not None:
        z_CV = (z_CV / form.logit_softcap).tanh_().mul_(form.logit_softcap)
    maximum_C, choice_C = z_CV.max(dim=-1)
    exp_CV = (z_CV - maximum_C[:, None]).exp_()
    total_C = exp_CV.sum(dim=-1)
    log_total_C = total_C.log() + maximum_C
    target_logit_C = z_CV.gather(1, targets_C[:, None]).squeeze(1)
    nll_C = log_total_C - target_logit_C
    # entropy = log(sum e^z) - sum p z, as one matrix-vector product per row: no third C x V buffer
    mean_logit_C = torch.bmm(exp_CV[:, None, :], z_CV[:, :, None]).reshape(-1) / total_C
    loss_C = nll_C
    if form.label_smoothing:
        smooth_C = log_total_C - z_CV.mean(dim=-1)
        loss_C = (1.0 - form.label_smoothing) * nll_C + form.label_smoothing * smooth_C
    row_scale_C = torch.full_like(nll_C, grad_scale if grad_scale is not None else 0.0)
    if form.dft:
        probability_C = (-nll_C).exp()
        loss_C = loss_C * probability_C
        row_scale_C = row_scale_C * probability_C
    sums = LossSums(
        loss_C.sum(),
        (log_total_C - mean_logit_C).sum(),
        (choice_C == targets_C).sum().float(),
        int(targets_C.shape[0]),
    )
    if grad_scale is None:
        return sums, None
    grad_CV = exp_CV.mul_((row_scale_C / total_C)[:, None])
    one_hot_C = (1.0 - form.label_smoothing) * row_scale_C
    grad_CV.scatter_add_(1, targets_C[:, None], -one_hot_C[:, None])
    if form.label_smoothing:
        grad_CV -= (form.label_smoothing / z_CV.shape[1]) * row_scale_C[:, None]
    if form.logit_softcap is not None:
        grad_CV *= 1.0 - (z_CV / form.logit_softcap).square_()
    if form.logit_scale != 1.0:
        grad_CV *= form.logit_scale
    return sums, grad_CV


def _add_to_grad(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    """Accumulate as autograd would."""
    gradient = gradient.to(parameter.dtype)
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
