"""The engine: forward and backward of one micro-batch, and the gradient's norm.

In: a model, a plan and micro-batches.  Out: sums over targets; gradients are added to the parameters' `.grad`.  What it keeps true:
the objective is the sum over targets divided by the targets of the *optimizer* batch, so that any cut into micro-batches
gives the same gradient up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sartor.engine import attention, layout, noise
from sartor.engine.loss import LossForm, linear_cross_entropy
from sartor.engine.precision import autocast
from sartor.engine.traits import ModelTraits, base_model, decoder, output_head
from sartor.errors import ModelError
from sartor.records import EngineSettings, LossSums, MicroBatch, Plan

# Head check: float32 rounding gives 1e-6, a missing scale or soft-cap 1e-2 and more.
_HEAD_TOLERANCE = 1e-3


class Engine:
    """A model under a plan.  Use its methods inside `with engine.running():`, which sets the model up and puts it back."""

    def __init__(self, model: nn.Module, traits: ModelTraits, plan: Plan, settings: EngineSettings) -> None:
        self.model = model
        self.traits = traits
        self.plan = plan
        self.settings = settings
        self.device = next(model.parameters()).device
        self.compute_dtype: torch.dtype = getattr(torch, plan.compute_dtype)
        self.form = LossForm(
            settings.label_smoothing, settings.loss_type == "dft", traits.logit_scale, traits.logit_softcap
        )
        self.step_number = 0
        """Set by the loop before each optimizer step; keys NEFTune's noise."""
        self._micro: MicroBatch | None = None
        self._adds_noise = False
        self.balance_coefficient = 0.0
        """Weight of a mixture of experts' load-balancing loss; set by the trainer."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Attention, recomputation and NEFTune's hook installed; all put back at the end, also after an error."""
        inner = base_model(self.model)
        attention.register()
        with ExitStack() as undo:
            undo.enter_context(attention.attention_implementation(inner, self.plan.attention))
            if self.plan.gradient_checkpointing:
                was_on = bool(inner.is_gradient_checkpointing)
                inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                if not was_on:
                    undo.callback(inner.gradient_checkpointing_disable)
            elif inner.is_gradient_checkpointing:
                inner.gradient_checkpointing_disable()
                undo.callback(inner.gradient_checkpointing_enable)
            if self.settings.neftune_noise_alpha:
                handle = inner.get_input_embeddings().register_forward_hook(self._noise_hook)
                undo.callback(handle.remove)
            yield

    def backward(
        self, micro: MicroBatch, *, batch_targets: int, batch_tokens: int, loss_scale: float = 1.0
    ) -> LossSums:
        """Forward and backward of one micro-batch; gradients of sum / `batch_targets` are added to `.grad`.

        Args:
            batch_targets: targets in the whole optimizer batch.
            batch_tokens: tokens in it; weighs a mixture of experts' balance loss.
            loss_scale: for float16.
        """
        if micro.num_targets == 0:
            zero = torch.zeros((), device=self.device)
            return LossSums(zero, zero, zero, 0)
        self._adds_noise = True
        try:
            output = self._decode(micro)
        finally:
            self._adds_noise = False
        hidden_NH = self._target_rows(output, micro)
        with autocast(self.device, self.compute_dtype):
            sums, grad_NH = linear_cross_entropy(
                hidden_NH,
                output_head(self.model),
                micro.targets_N,
                self.form,
                grad_scale=loss_scale / batch_targets,
                chunk_rows=self.plan.loss_chunk_rows,
                compute_dtype=self._product_dtype(hidden_NH),
            )
        if self.balance_coefficient:
            balance = self._balance(output) * (self.balance_coefficient * loss_scale * micro.num_tokens / batch_tokens)
            torch.autograd.backward([hidden_NH, balance], [grad_NH, None])
        elif hidden_NH.requires_grad:
            torch.autograd.backward(hidden_NH, grad_NH)
        return sums

    @torch.no_grad()
    def measure(self, micro: MicroBatch) -> LossSums:
        """Sums of one micro-batch without gradients."""
        hidden_NH = self._target_rows(self._decode(micro), micro)
        with autocast(self.device, self.compute_dtype):
            sums, _ = linear_cross_entropy(
                hidden_NH,
                output_head(self.model),
                micro.targets_N,
                self.form,
                grad_scale=None,
                chunk_rows=self.plan.loss_chunk_rows,
                compute_dtype=self._product_dtype(hidden_NH),
            )
        return sums

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare our head (matrix, scale, soft-cap) with the model's own logits on a few tokens.

        Raises:
            ModelError: they differ: the architecture does something after its decoder that the traits don't know.
        """
        ids = torch.arange(6, device=self.device)[None] % self.traits.vocabulary_size
        inner = base_model(self.model)
        was_training = inner.training
        inner.eval()
        try:
            theirs = inner(input_ids=ids, use_cache=False).logits[0].float()
            hidden = decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = output_head(self.model)(hidden).float() * self.form.logit_scale
            if self.form.logit_softcap is not None:
                ours = self.form.logit_softcap * torch.tanh(ours / self.form.logit_softcap)
        finally:
            inner.train(was_training)
        width = theirs.shape[-1]
        difference = float((ours[:, :width] - theirs).norm() / theirs.norm().clamp(min=1e-30))
        tolerance = _HEAD_TOLERANCE if next(inner.parameters()).dtype == torch.float32 else 5e-2
        if ours.shape != theirs.shape or not difference <= tolerance:
            raise ModelError(
                f"{type(inner).__name__} ({self.traits.model_type}) does more between decoder and logits than its configuration says "
                f"(difference {difference:.1e}): its loss would be wrong here, so it is refused. Please report the architecture."
            )

    def gradient_norm(self, max_norm: float, inverse_scale: float = 1.0) -> float:
        """Euclidean norm of all gradients before clipping; gradients are clipped to `max_norm` where it is positive."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if inverse_scale != 1.0:
            torch._foreach_mul_(gradients, inverse_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm > 0:
            parameters = [p for p in self.model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def _decode(self, micro: MicroBatch) -> Any:
        inputs = layout.model_inputs(micro, self.plan.layout, self.traits)
        if self.balance_coefficient:
            inputs["output_router_logits"] = True
        self._micro = micro
        with autocast(self.device, self.compute_dtype):
            return decoder(self.model)(**inputs)

    def _target_rows(self, output: Any, micro: MicroBatch) -> torch.Tensor:
        hidden_TH = layout.flat_hidden(output.last_hidden_state, micro, self.plan.layout)
        return hidden_TH.index_select(0, micro.target_rows_N)

    def _product_dtype(self, hidden: torch.Tensor) -> torch.dtype:
        """The compute dtype; a float64 model (tests) keeps its own."""
        return hidden.dtype if hidden.dtype == torch.float64 else self.compute_dtype

    def _balance(self, output: Any) -> torch.Tensor:
        if self.traits.balance_loss is None:
            raise ModelError(
                f"{self.traits.model_type} has no load-balancing loss, so router_aux_loss_coef has nothing to weigh."
            )
        return self.traits.balance_loss(output.router_logits, self.traits.num_experts, self.traits.experts_per_token)

    def _noise_hook(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not self._adds_noise or self._micro is None:
            return output
        return noise.add_noise(
            output,
            self._micro,
            self.plan.layout,
            alpha=float(self.settings.neftune_noise_alpha or 0.0),
            seed=self.settings.seed,
            step=self.step_number,
        )
