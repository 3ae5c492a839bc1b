"""Chunked linear cross-entropy: the loss over target positions and its gradients in one pass, never the full logits.

In: hidden states of the target positions (N x H), the output head, the trained tokens (N).  Out: sums of loss, entropy
and correct first choices, and the gradient with respect to the hidden states; gradients of the head's own parameters
are added to their `.grad`.  What it keeps true: only C x V logits exist at a time (C rows of a chunk), everything after
the head's matrix product is float32 whatever the compute dtype, and any chunking gives the same result up to rounding.

The scale of the gradient is known before the pass (1 / targets in the optimizer batch), so the backward pass needs no
second visit to the logits: with p = softmax(z), the gradient of -log p[y] is p - onehot(y).

Shape suffixes: N target tokens, H hidden width, V vocabulary, C rows of a chunk (see records.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sartor.engine.objectives import NLL, Objective
from sartor.engine.precision import autocast
from sartor.records import LossSums

CACHE_BYTES = 2 << 20
"""Of float32 logits that a CPU works on together: they, and as much again, fit its second-level cache or nearly so."""


def every_piece(num_rows: int, piece_rows: int) -> Iterable[int]:
    """Where pieces of `piece_rows` rows begin, all of them: 5 rows in pieces of 2 begin at 0, 2 and 4."""
    return range(0, num_rows, piece_rows)


@dataclass(frozen=True, slots=True)
class LossForm:
    """What is minimised, how the head's product becomes logits, and in which pieces they are worked on."""

    objective: Objective = NLL
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    fits_cache: bool = True
    """Whether a few rows of a chunk are worked on at a time, as a CPU likes it, or all of them, as a GPU does."""
    pieces: Callable[[int, int], Iterable[int]] = every_piece
    """Which chunks, and which of their pieces, are visited: every one.  A simulation of memory, for which pieces of a
    size are alike, leaves repetitions out."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Trained tokens of some rows, and what each weighs."""

    ids_C: torch.Tensor
    weights_C: torch.Tensor | None
    """None: each weighs 1."""

    def __getitem__(self, rows: slice) -> Targets:
        return Targets(self.ids_C[rows], None if self.weights_C is None else self.weights_C[rows])


class LogitsBuffer:
    """Memory for one chunk of logits, kept from micro-batch to micro-batch.

    On a CPU a chunk is the largest allocation of a step: given back, other buffers are carved out of it, and the next
    chunk is fresh memory again, of which the system clears every page.
    """

    def __init__(self) -> None:
        self._values = torch.empty(0)

    def take(self, num_rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
        """`num_rows` x `width` values of any content, of the dtype and device of `like`; valid until the next call."""
        count = num_rows * width
        if self._values.dtype != like.dtype or self._values.device != like.device or self._values.numel() < count:
            self._values = torch.empty(0)  # before the larger one is there
            self._values = like.new_empty(count)
        return self._values[:count].view(num_rows, width)


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    head: nn.Module,
    targets_N: torch.Tensor,
    form: LossForm,
    *,
    weights_N: torch.Tensor | None = None,
    grad_scale: float | None,
    chunk_rows: int,
    compute_dtype: torch.dtype,
    buffer: LogitsBuffer | None = None,
) -> tuple[LossSums, torch.Tensor | None]:
    """Sum the loss of `targets_N` under `head(hidden_NH)`, and take gradients in the same pass.

    Call it outside of autocast: the head's product is cast to `compute_dtype` here, and nothing else may be.

    Args:
        hidden_NH: hidden states whose next token is trained.
        head: the output head.  A plain `nn.Linear` takes the fast path; any other module, such as an adapter on the
            head, is called once per chunk.
        targets_N: int64.
        form: what is minimised.
        weights_N: what each target's loss and gradient are multiplied by; None: 1.
        grad_scale: d(objective)/d(loss sum), usually loss scale / targets in the optimizer batch; None: no gradients.
        chunk_rows: C, rows of logits that exist at a time.
        compute_dtype: dtype of the head's product.
        buffer: where logits of a plain head are put; None: into fresh memory each time.

    Returns:
        The sums, and the gradient with respect to `hidden_NH` in its dtype (None where `grad_scale` is None).
    """
    grad_hidden_NH = torch.empty_like(hidden_NH) if grad_scale is not None else None
    sums = no_sums(hidden_NH.device, _wide_dtype(compute_dtype))
    plain = _PlainHead(head, compute_dtype, buffer) if type(head) is nn.Linear else None
    for start in form.pieces(targets_N.shape[0], chunk_rows):
        rows = slice(start, start + chunk_rows)
        hidden_CH = hidden_NH[rows].detach()
        targets = Targets(targets_N[rows], None if weights_N is None else weights_N[rows])
        if plain is not None:
            part, grad_CH = plain.chunk(hidden_CH, targets, form, grad_scale)
        else:
            part, grad_CH = _called_chunk(head, hidden_CH, targets, form, grad_scale, compute_dtype)
        sums = sums + part
        if grad_hidden_NH is not None and grad_CH is not None:
            grad_hidden_NH[rows] = grad_CH
    return sums, grad_hidden_NH


def no_sums(device: torch.device, dtype: torch.dtype = torch.float32) -> LossSums:
    """Of no targets at all."""
    zero = torch.zeros((), device=device, dtype=dtype)
    return LossSums(zero, zero, zero, 0)


class _PlainHead:
    """One matrix and perhaps a bias: its gradients are two matrix products per chunk, without autograd."""

    def __init__(self, head: nn.Linear, compute_dtype: torch.dtype, buffer: LogitsBuffer | None) -> None:
        self._buffer = buffer
        self.weight: torch.Tensor = head.weight
        self.bias: torch.Tensor | None = head.bias
        self.dtype = compute_dtype
        self.weight_VH = head.weight.detach().to(compute_dtype)
        """In the compute dtype; the parameter's own memory where that is its dtype."""

    def chunk(
        self, hidden_CH: torch.Tensor, targets: Targets, form: LossForm, grad_scale: float | None
    ) -> tuple[LossSums, torch.Tensor | None]:
        """Sums and the hidden states' gradient; the parameters' is added to their `.grad`."""
        hidden_CH = hidden_CH.to(self.dtype)
        logits_CV = self._product(hidden_CH)
        if self.bias is not None:
            logits_CV += self.bias.detach().to(self.dtype)
        part, grad_logits_CV = _chunk(logits_CV, targets, form, grad_scale)
        if grad_logits_CV is None:
            return part, None
        if self.bias is not None and self.bias.requires_grad:
            gradient_V = grad_logits_CV.sum(0).to(self.bias.dtype)
            self.bias.grad = gradient_V if self.bias.grad is None else self.bias.grad.add_(gradient_V)
        grad_logits_CV = grad_logits_CV.to(self.dtype)
        if self.weight.requires_grad:
            if self.weight.grad is None:
                self.weight.grad = (grad_logits_CV.T @ hidden_CH).to(self.weight.dtype)
            elif self.weight.grad.dtype == self.dtype:
                self.weight.grad.addmm_(grad_logits_CV.T, hidden_CH)
            else:
                self.weight.grad += grad_logits_CV.T @ hidden_CH
        return part, grad_logits_CV @ self.weight_VH

    def _product(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        """The logits, in the buffer where there is one."""
        if self._buffer is None:
            return hidden_CH @ self.weight_VH.T
        out_CV = self._buffer.take(hidden_CH.shape[0], self.weight_VH.shape[0], hidden_CH)
        return torch.mm(hidden_CH, self.weight_VH.T, out=out_CV)


def _called_chunk(
    head: nn.Module,
    hidden_CH: torch.Tensor,
    targets: Targets,
    form: LossForm,
    grad_scale: float | None,
    compute_dtype: torch.dtype,
) -> tuple[LossSums, torch.Tensor | None]:
    """A chunk through a head that is more than one matrix: autograd runs over the head alone, one chunk at a time."""
    device = hidden_CH.device
    if grad_scale is None:
        with torch.no_grad(), autocast(device, compute_dtype):
            logits_CV = head(hidden_CH)
        return _chunk(logits_CV.clone(), targets, form, None)
    with torch.enable_grad(), autocast(device, compute_dtype):
        leaf_CH = hidden_CH.requires_grad_()
        logits_CV = head(leaf_CH)
    part, grad_logits_CV = _chunk(logits_CV.detach().clone(), targets, form, grad_scale)  # the head may need its own
    assert grad_logits_CV is not None
    torch.autograd.backward(logits_CV, grad_logits_CV.to(logits_CV.dtype))
    return part, leaf_CH.grad


@torch.no_grad()
def _chunk(
    logits_CV: torch.Tensor, targets: Targets, form: LossForm, grad_scale: float | None
) -> tuple[LossSums, torch.Tensor | None]:
    """Sums and the gradient with respect to the head's raw output, for one chunk of logits.

    `logits_CV` is overwritten: with the gradient, in its own dtype, where one is asked for.  On a CPU a few rows are
    worked on at a time, so that the eight passes over them stay in its cache: on the whole chunk they would cost a
    seventh of the head's matrix products, like this a twentieth.
    """
    sums = no_sums(logits_CV.device, _wide_dtype(logits_CV.dtype))
    rows_at_once = logits_CV.shape[0]
    if form.fits_cache:
        rows_at_once = max(1, CACHE_BYTES // (4 * logits_CV.shape[1]))
    for start in form.pieces(logits_CV.shape[0], rows_at_once):
        rows = slice(start, start + rows_at_once)
        sums = sums + _rows(logits_CV[rows], targets[rows], form, grad_scale)
    return sums, (logits_CV if grad_scale is not None else None)


def _rows(logits_CV: torch.Tensor, targets: Targets, form: LossForm, grad_scale: float | None) -> LossSums:
    """`_chunk` for rows that are worked on together."""
    targets_C, weights_C = targets.ids_C, targets.weights_C
    targets_C1 = targets_C[:, None]
    z_CV = logits_CV.to(_wide_dtype(logits_CV.dtype))  # the same memory where the dtype is the same
    if form.logit_scale != 1.0:
        z_CV.mul_(form.logit_scale)
    if form.logit_softcap is not None:
        z_CV.div_(form.logit_softcap).tanh_()
        slope_CV = (1.0 - z_CV.square()) if grad_scale is not None else None  # of c tanh(z / c)
        z_CV.mul_(form.logit_softcap)
    z_CV.sub_(z_CV.amax(dim=-1, keepdim=True))
    exp_CV = z_CV.exp()
    total_C = exp_CV.sum(dim=-1)
    log_total_C = total_C.log()
    target_C = z_CV.gather(1, targets_C1).squeeze(1)
    nll_C = log_total_C - target_C
    loss_C, factor_C = form.objective.losses(nll_C, log_total_C, z_CV)
    weight_sum = None
    if weights_C is not None:
        weights_C = weights_C.to(loss_C.dtype)
        loss_C, factor_C, weight_sum = loss_C * weights_C, factor_C * weights_C, weights_C.sum()
    num_correct = _num_first_choices(z_CV, target_C, targets_C, exact=logits_CV.dtype == z_CV.dtype)
    entropy_C = log_total_C - z_CV.mul_(exp_CV).sum(dim=-1) / total_C
    if grad_scale is not None:
        row_scale_C = factor_C * grad_scale
        torch.mul(exp_CV, (row_scale_C / total_C)[:, None], out=z_CV)
        form.objective.subtract_labels(z_CV, targets_C1, row_scale_C)
        if form.logit_softcap is not None:
            assert slope_CV is not None
            z_CV.mul_(slope_CV)
        if form.logit_scale != 1.0:
            z_CV.mul_(form.logit_scale)
        if z_CV is not logits_CV:
            logits_CV.copy_(z_CV)
    num_targets = int(targets_C.shape[0])
    return LossSums(loss_C.sum(), entropy_C.sum(), num_correct.to(nll_C.dtype), num_targets, weight_sum)


def _num_first_choices(
    z_CV: torch.Tensor, target_C: torch.Tensor, targets_C: torch.Tensor, *, exact: bool
) -> torch.Tensor:
    """How many targets are the model's first choice; `z_CV` is shifted so that each row's largest entry is 0.

    In float32 (`exact`) two entries are practically never equal.  Logits that were rounded to 16 bits often tie, and
    then the first entry is the choice, as `argmax` has it; that is slow, so only rows that may count are looked at.
    """
    is_largest_C = target_C == 0
    if exact:
        return is_largest_C.sum()
    candidates = is_largest_C.nonzero().squeeze(1)
    return (z_CV[candidates].argmax(dim=-1) == targets_C[candidates]).sum()


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for a model that is computed in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32
