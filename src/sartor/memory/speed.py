"""How long an optimizer step takes, by a few terms: products, weights that are read again, updates.

In: a model's sizes, a batch, settings and rates.  Out: seconds.  What it is for: to order settings, and to say what a
neighbour would cost.  Its constants for a CPU are fitted to the table in docs/log.md ("Tokens at once"); it is an
estimate, and is called one wherever it is shown.

Example, that table's model in float32, 2,048 tokens in all: one micro-batch takes 4.5 s, two of 1,024 tokens 1.4 %
more, four of 512 some 6 % more; recomputing every layer adds a sixth there, where the head is most of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sartor.device import kind_of
from sartor.engine.traits import ModelTraits
from sartor.memory.rates import Rates
from sartor.records import Plan

if TYPE_CHECKING:
    from torch import nn

_CPU_FLOAT32_BYTES, _CPU_HALF_BYTES, _CUDA_BYTES = 32, 80, 20
"""Bytes per weight that one more micro-batch moves: weights read twice, perhaps cast, gradients read and written; on a
CPU also what products of fewer rows lose."""
_CHUNK_BYTES = 12
"""Per weight of the head and chunk of the loss: the weight read, its gradient read and written."""
_UPDATE_BYTES = 28
"""Per trained weight: parameter and two states read and written, gradient read."""
_UPDATE_PASSES: dict[str | None, int] = {None: 1, "fused": 1, "foreach": 4, "for-loop": 5}
"""How often an update goes over its numbers.  Estimated from the number of its operations; for-loop launches more."""
_ROUNDED_UPDATE_BYTES = 114
"""The same where parameters are rounded stochastically: a wide copy of parameter, gradient and states, random bits, and
back.  Counted by operations."""
_CHEAP_VALUES = 20
"""That recomputing a layer's cheap operations reads and writes, for each token and unit of its width.  From a Llama of
8 layers on a CPU (docs/log.md, "Only cheap operations")."""
_CHEAP_LAUNCHES = 0.5
"""More kernels that a layer then launches; and each passes through Python.  An assumption."""
_CUDA_LAYER_S = 1e-3
"""Launching the kernels of one layer, forward and backward."""


@dataclass(frozen=True, slots=True)
class Batch:
    """An optimizer batch, as it is on average."""

    num_tokens: float
    num_targets: float
    mean_square_length: float
    """Of its documents, weighed by tokens: attention costs a token its document's length."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, as far as time is concerned."""

    num_layers: int
    layer_weights: int
    head_weights: int
    trained_weights: int
    all_weights: int
    attention_features: int

    @property
    def trained_share(self) -> float:
        """Of all weights: products for gradients of frozen weights are left out."""
        return self.trained_weights / max(1, self.all_weights)


def sizes_of(traits: ModelTraits, model: nn.Module) -> Sizes:
    """Of a model, which may be one without memory."""
    weights = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Sizes(
        traits.num_layers,
        traits.num_non_embedding_parameters,
        traits.hidden_size * traits.vocabulary_size,
        sum(count for count, is_trained in weights if is_trained),
        sum(count for count, _ in weights),
        traits.num_attention_features,
    )


def step_seconds(sizes: Sizes, batch: Batch, rates: Rates, plan: Plan, *, state_bytes: int = 0) -> float:
    """Seconds of one optimizer step.

    Args:
        sizes: of the model.
        batch: that is trained on at a time.
        rates: of the device.
        plan: how the step is executed.
        state_bytes: of the optimizer's states; where the plan keeps them in the host's memory, they come from there and
            go back there, once each.
    """
    is_cuda, is_half = not kind_of(plan.device).is_host, plan.compute_dtype in ("bfloat16", "float16")
    num_whole = sizes.num_layers if plan.recomputed_layers is None else plan.recomputed_layers
    num_again = num_whole if plan.gradient_checkpointing else 0
    passes = 4 + 2 * min(1.0, sizes.trained_share)  # forward, gradients of activations; those of weights if trained
    again = 2 * num_again / max(1, sizes.num_layers)
    attention = sizes.num_layers * sizes.attention_features * batch.mean_square_length  # half of it is masked
    flops = (passes + again) * (sizes.layer_weights * batch.num_tokens + attention * batch.num_tokens)
    flops += passes * sizes.head_weights * batch.num_targets
    num_micro_batches = max(1, math.ceil(batch.num_tokens / max(1, plan.micro_batch_tokens)))
    chunks = num_micro_batches * math.ceil(batch.num_targets / num_micro_batches / plan.loss_chunk_rows)
    update_bytes = _UPDATE_PASSES[plan.optimizer_implementation] * _UPDATE_BYTES
    if plan.stochastic_rounding:
        update_bytes += _ROUNDED_UPDATE_BYTES - _UPDATE_BYTES
    moved: float = chunks * _CHUNK_BYTES * sizes.head_weights + update_bytes * sizes.trained_weights
    if plan.recomputes_cheap:
        num_cheap = sizes.num_layers - num_again
        size = 2 if is_half else 4
        moved += num_cheap * batch.num_tokens * sizes.attention_features * _CHEAP_VALUES * size
    if is_cuda:
        moved += num_micro_batches * _CUDA_BYTES * sizes.all_weights
    elif is_half:
        moved += num_micro_batches * _CPU_HALF_BYTES * sizes.all_weights
    else:
        moved += num_micro_batches * _CPU_FLOAT32_BYTES * sizes.layer_weights
    launches = 0.0
    if is_cuda:
        launches = num_micro_batches * sizes.num_layers * _CUDA_LAYER_S
        if plan.recomputes_cheap:
            launches *= 1 + _CHEAP_LAUNCHES
    streamed = 2 * state_bytes / rates.host_bytes_per_second if plan.optimizer_states == "host" else 0.0
    return flops / rates.flops_per_second + moved / rates.bytes_per_second + launches + streamed
