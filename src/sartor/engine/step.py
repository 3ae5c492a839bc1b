"""The engine: forward and backward of one micro-batch, and the gradient's norm.

In: a model, a plan and micro-batches.  Out: sums over targets; gradients are added to the parameters' `.grad`.  What it
keeps true: the objective is the sum over targets divided by the targets of the *optimizer* batch (weighted: the sum of
their weights), so that any cut into micro-batches gives the same gradient up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sartor.device import kind_of
from sartor.engine import attention, compiled, layout, noise
from sartor.engine.embedding import rows_added_directly
from sartor.engine.loss import LogitsBuffer, LossForm, linear_cross_entropy, no_sums
from sartor.engine.objectives import Objective
from sartor.engine.precision import autocast
from sartor.engine.recompute import recomputation, recomputed, set_recomputation
from sartor.engine.rounding import norm_of
from sartor.engine.traits import ModelTraits, base_model, decoder, evaluating, output_head
from sartor.errors import ModelError
from sartor.records import EngineSettings, Layout, LossSums, MicroBatch, Plan

# Head check: float32 rounding gives 1e-6, a missing scale or soft-cap 1e-2 and more.
_HEAD_TOLERANCE = 1e-3


class Engine:
    """A model under a plan.  Use its methods inside `with engine.running():`, which sets it up and puts it back."""

    def __init__(self, model: nn.Module, traits: ModelTraits, plan: Plan, settings: EngineSettings) -> None:
        self.model = model
        self.traits = traits
        self.plan = plan
        self.settings = settings
        self.device = next(model.parameters()).device
        self.compute_dtype: torch.dtype = getattr(torch, plan.compute_dtype)
        self.form = LossForm(
            Objective.of(settings),
            traits.logit_scale,
            traits.logit_softcap,
            fits_cache=kind_of(plan.device).is_host,
        )
        self.balance_coefficient = 0.0
        """Weight of a mixture of experts' load-balancing loss; set by the trainer."""
        self.on_phase: Callable[[str], None] = lambda phase: None
        """Told what begins: "forward", "loss", "backward"; whoever measures memory listens."""
        self._micro: MicroBatch | None = None
        self._noise_step: int | None = None
        """While noise is added: the steps that are done, which key it."""
        self._logits: LogitsBuffer | None = None
        self._compiled: compiled.Calls = ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Attention, recomputation and the embedding's hooks installed; all put back at the end, also after an error.

        Raises:
            ModelError: the plan recomputes activations, and the architecture cannot.
        """
        inner = base_model(self.model)
        with ExitStack() as undo:
            undo.enter_context(attention.registered(between_programs=self.plan.compile_backend is not None))
            self._compiled = compiled.compiled_calls(inner, self.plan)
            undo.callback(setattr, self, "_compiled", ())
            undo.enter_context(recomputation(inner, self.plan))
            undo.enter_context(rows_added_directly(inner.get_input_embeddings(), self.plan.device))
            if self.settings.neftune_noise_alpha:
                handle = inner.get_input_embeddings().register_forward_hook(self._noise_hook)
                undo.callback(handle.remove)
            if kind_of(self.plan.device).is_host:
                self._logits = LogitsBuffer()
                undo.callback(setattr, self, "_logits", None)
            yield

    @property
    def can_recompute(self) -> bool:
        """Whether the architecture can recompute activations."""
        return bool(base_model(self.model).supports_gradient_checkpointing)

    def replan(self, plan: Plan) -> None:
        """Go on under another plan; what may differ is what may change between micro-batches: sizes and recomputation.

        Call it inside `running()`.
        """
        if recomputed(plan) != recomputed(self.plan):
            set_recomputation(base_model(self.model), plan)
        self.plan = plan

    def backward(
        self, micro: MicroBatch, *, batch_targets: float, batch_tokens: int, loss_scale: float = 1.0, step: int = 0
    ) -> LossSums:
        """Forward and backward of one micro-batch; gradients of sum / `batch_targets` are added to `.grad`.

        Args:
            micro: whole documents.
            batch_targets: targets in the whole optimizer batch, or the sum of their weights.
            batch_tokens: tokens in it; weighs a mixture of experts' balance loss.
            loss_scale: for float16.
            step: optimizer steps that are done; keys NEFTune's noise.

        Raises:
            ModelError: a balance loss is asked for, and the architecture has none.
        """
        if micro.num_targets == 0 and not self.balance_coefficient:
            return no_sums(self.device)
        # A caller's autocast would reach the backward pass too; what is to be cast is cast by us.
        with autocast(self.device, torch.float32), self._planned_attention(), compiled.in_use(self._compiled):
            return self._backward(micro, batch_targets, batch_tokens, loss_scale, step)

    def _backward(
        self, micro: MicroBatch, batch_targets: float, batch_tokens: int, loss_scale: float, step: int
    ) -> LossSums:
        self._noise_step = step
        self.on_phase("forward")
        try:
            output = self._decode(micro)
        finally:
            self._noise_step = None
        hidden_NH = layout.target_hidden(output.last_hidden_state, micro, self.plan.layout)
        self.on_phase("loss")
        sums, grad_NH = self._loss(hidden_NH, micro, loss_scale / batch_targets)
        self.on_phase("backward")
        roots: list[torch.Tensor] = []
        gradients: list[torch.Tensor | None] = []
        if hidden_NH.requires_grad:
            roots.append(hidden_NH)
            gradients.append(grad_NH)
        if self.balance_coefficient:
            balance = self._balance(output, micro)
            if balance.requires_grad:
                roots.append(balance * (self.balance_coefficient * loss_scale * micro.num_tokens / batch_tokens))
                gradients.append(None)
        if roots:
            torch.autograd.backward(roots, gradients)
        return sums

    @torch.no_grad()
    def measure(self, micro: MicroBatch) -> LossSums:
        """Sums of one micro-batch without gradients, noise or balance loss."""
        if micro.num_targets == 0:
            return no_sums(self.device)
        with autocast(self.device, torch.float32), self._planned_attention():
            output = self._decode(micro)
            return self._loss(layout.target_hidden(output.last_hidden_state, micro, self.plan.layout), micro, None)[0]

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare our head (matrix, scale, soft-cap) with the model's own logits on a few tokens.

        Raises:
            ModelError: they differ: the architecture does something after its decoder that the traits don't know.
        """
        ids = torch.arange(6, device=self.device)[None] % self.traits.vocabulary_size
        inner = base_model(self.model)
        with evaluating(inner):
            theirs = inner(input_ids=ids, use_cache=False).logits[0].float()
            hidden = decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = output_head(self.model)(hidden).float() * self.form.logit_scale
        if self.form.logit_softcap is not None:
            ours = self.form.logit_softcap * torch.tanh(ours / self.form.logit_softcap)
        tolerance = _HEAD_TOLERANCE if next(inner.parameters()).dtype == torch.float32 else 5e-2
        difference = float("inf")
        if ours.shape == theirs.shape:
            difference = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
        if not difference <= tolerance:
            raise ModelError(
                f"{type(inner).__name__} ({self.traits.model_type}) does more between decoder and logits than its "
                f"configuration says (difference {difference:.1e}): its loss would be wrong here, so it is refused. "
                "Please report the architecture."
            )

    def check_lengths(self, longest_tokens: int) -> None:
        """Refuse, before the first step, documents whose rotary frequencies would depend on what stands beside them.

        Args:
            longest_tokens: of the whole data set.

        Raises:
            ModelError: with what to set.
        """
        if self.plan.micro_batch_tokens > 1:
            _check_rotary(self.traits, longest_tokens)

    def gradient_norm(self, max_norm: float) -> float:
        """Euclidean norm of all gradients before clipping; gradients are clipped to `max_norm` where it is positive.

        Args:
            max_norm: 0 or less: no clipping.

        Returns:
            The norm; not finite where a float16 gradient overflowed.  Gradients are then of no use.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = norm_of(gradients)
        if max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def _planned_attention(self) -> AbstractContextManager[None]:
        return attention.attention_implementation(base_model(self.model), self.plan.attention)

    def _decode(self, micro: MicroBatch) -> Any:
        if len(micro.document_lengths) > 1:
            _check_rotary(self.traits, max(micro.document_lengths))
        inputs = layout.model_inputs(micro, self.plan.layout, self.traits)
        if self.balance_coefficient:
            inputs["output_router_logits"] = True
        self._micro = micro
        with autocast(self.device, self.compute_dtype):
            return decoder(self.model)(**inputs)

    def _loss(
        self, hidden_NH: torch.Tensor, micro: MicroBatch, grad_scale: float | None
    ) -> tuple[LossSums, torch.Tensor | None]:
        # a float64 model, which tests use as reference, keeps its dtype
        compute_dtype = hidden_NH.dtype if hidden_NH.dtype == torch.float64 else self.compute_dtype
        return linear_cross_entropy(
            hidden_NH,
            output_head(self.model),
            micro.targets_N,
            self.form,
            weights_N=micro.weights_N,
            grad_scale=grad_scale,
            chunk_rows=self.plan.loss_chunk_rows,
            compute_dtype=compute_dtype,
            buffer=self._logits,
        )

    def _balance(self, output: Any, micro: MicroBatch) -> torch.Tensor:
        """The load-balancing loss over the micro-batch's tokens; padding is no token."""
        if self.traits.balance_loss is None:
            raise ModelError(
                f"{self.traits.model_type} has no load-balancing loss, so router_aux_loss_coef has nothing to weigh."
            )
        is_real_BL = None
        if self.plan.layout is Layout.PADDED:
            is_real_BL = layout.model_inputs(micro, self.plan.layout, self.traits)["attention_mask"]
        return self.traits.balance_loss(
            output.router_logits, self.traits.num_experts, self.traits.experts_per_token, is_real_BL
        )

    def _noise_hook(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._noise_step is None or self._micro is None:
            return output
        return noise.add_noise(
            output,
            self._micro,
            self.plan.layout,
            alpha=float(self.settings.neftune_noise_alpha or 0.0),
            seed=self.settings.seed,
            step=self._noise_step,
        )


def _check_rotary(traits: ModelTraits, longest_tokens: int) -> None:
    limit = traits.rope_switch_tokens
    if limit is not None and longest_tokens > limit:
        raise ModelError(
            f"{traits.model_type} changes its rotary frequencies for everything in a micro-batch when one document is "
            f"longer than {limit} tokens; the longest here has {longest_tokens}. Set max_length={limit} or less, or "
            "micro_batch_tokens=1 without packing, which takes one document at a time."
        )
