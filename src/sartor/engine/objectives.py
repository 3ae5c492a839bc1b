"""What is minimised for each target: token losses, written once for the one-pass loss and for full logits.

In: the log-probabilities that the model gives at the targets' positions.  Out: each target's loss, and the factor that
the gradient of its cross-entropy is multiplied by.  What it keeps true: the chunked loss (`engine.loss`), which takes
its gradient by hand, and the loss of full logits, whose gradient autograd takes, follow the same formula.

To add a kind of token loss: write a `TokenLoss` here, give it its name in `TOKEN_LOSSES`, and let `config.checks` and
`SFTConfig.loss_type` accept that name.

Shape suffixes: N targets, V vocabulary, B rows of a padded batch, L its length (see records.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from sartor.records import IGNORE_INDEX, EngineSettings

TokenLoss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A kind of loss: from each target's cross-entropy (label smoothing included) and its -log p, both of shape N, come the
loss and its derivative with respect to the cross-entropy.  What a kind holds constant it detaches."""


def nll(cross_entropy_N: torch.Tensor, nll_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy itself."""
    return cross_entropy_N, torch.ones_like(nll_N)


def dft(cross_entropy_N: torch.Tensor, nll_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic Fine-Tuning: each target's loss times its own probability, which is held constant.

    https://huggingface.co/papers/2508.05629
    """
    probability_N = (-nll_N).exp().detach()
    return cross_entropy_N * probability_N, probability_N


TOKEN_LOSSES: Mapping[str, TokenLoss] = MappingProxyType({"nll": nll, "dft": dft})
"""By their names in `loss_type`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A token loss and its label smoothing.

    With smoothing epsilon the cross-entropy is (1 - epsilon) * -log p[target] + epsilon * mean of -log p over the
    vocabulary (Szegedy et al. 2015, equation 8, https://huggingface.co/papers/1512.00567).
    """

    loss_type: str = "nll"
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, settings: EngineSettings) -> Objective:
        """What the settings ask for."""
        return cls(settings.loss_type, settings.label_smoothing)

    @property
    def is_plain(self) -> bool:
        """Whether it is the negative log-likelihood, which models compute themselves."""
        return self == NLL

    def losses(
        self, nll_N: torch.Tensor, log_total_N: torch.Tensor, z_NV: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each target's loss, and the factor that the gradient of its cross-entropy is multiplied by.

        Args:
            nll_N: -log p of each target.
            log_total_N: log of the sum of exp(z).
            z_NV: logits, shifted by any constant per row.
        """
        cross_entropy_N = nll_N
        if self.label_smoothing:
            smooth_N = log_total_N - z_NV.mean(dim=-1)
            cross_entropy_N = (1.0 - self.label_smoothing) * nll_N + self.label_smoothing * smooth_N
        return TOKEN_LOSSES[self.loss_type](cross_entropy_N, nll_N)

    def subtract_labels(self, gradient_NV: torch.Tensor, targets_N1: torch.Tensor, factor_N: torch.Tensor) -> None:
        """Turn factor * softmax, in place, into the gradient with respect to the logits: factor * (softmax - labels).

        Of smoothed labels the target has 1 - epsilon, and each token of the vocabulary epsilon / V.
        """
        gradient_NV.scatter_add_(1, targets_N1, (factor_N * (self.label_smoothing - 1.0))[:, None])
        if self.label_smoothing:
            gradient_NV.sub_((self.label_smoothing / gradient_NV.shape[1]) * factor_N[:, None])

    def mean_loss(
        self, logits_BLV: torch.Tensor, labels_BL: torch.Tensor, num_targets: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The loss of full logits, with a gradient: the sum over the targets divided by their number.

        Args:
            logits_BLV: of rows that each hold one document.
            labels_BL: unshifted, -100 where nothing is trained.
            num_targets: of the whole optimizer batch; None: of this batch.

        Returns:
            A scalar; not a number where there is no target at all, as with transformers' own losses.
        """
        labels = labels_BL[:, 1:]
        is_target = labels != IGNORE_INDEX
        logits_NV = logits_BLV[:, :-1][is_target]
        log_p_NV = torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), dim=-1)
        nll_N = -log_p_NV.gather(1, labels[is_target].unsqueeze(1)).squeeze(1)
        loss_N, _ = self.losses(nll_N, torch.zeros_like(nll_N), log_p_NV)
        divisor = is_target.sum() if num_targets is None else torch.as_tensor(num_targets, device=loss_N.device)
        return loss_N.sum() / divisor


NLL = Objective()
