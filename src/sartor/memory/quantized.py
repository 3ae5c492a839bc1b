"""Quantized layers by rule: what bitsandbytes' 4-bit layers keep and allocate, without bitsandbytes.

By rule and unmeasured: a prediction that used one says so.  The rules are those of the paper: 4-bit weights are two to
a byte with a scale per 64 values, the scales themselves in 8 bits with a float32 per 256 of them (Dettmers et al. 2023,
section 3, https://huggingface.co/papers/2305.14314).  The whole weight is made in the compute dtype for a product,
forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sartor.engine.traits import decoder

_VALUES_PER_SCALE = 64
_SCALES_PER_SCALE = 256


def quantize(model: nn.Module) -> None:
    """Replace the linear layers of the decoder; embeddings and head stay as they are.

    Args:
        model: on the meta device.
    """
    for parent in decoder(model).modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


class QuantizedLinear(nn.Linear):
    """Frozen; a Linear to peft, which puts its adapter around it."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        num_values = plain.in_features * plain.out_features
        packed = torch.empty(-(-num_values // 2), 1, dtype=torch.uint8, device="meta")
        num_scales = -(-num_values // _VALUES_PER_SCALE)
        self.register_buffer("scales", torch.empty(num_scales, dtype=torch.uint8, device="meta"))
        nested = -(-num_scales // _SCALES_PER_SCALE)
        self.register_buffer("nested_scales", torch.empty(nested, dtype=torch.float32, device="meta"))
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product; shapes as nn.Linear's, in autocast's dtype where it is on."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            return _Product.apply(input.to(dtype), self)


class _Product(torch.autograd.Function):
    """Keeps the packed weight for backward, never the wide one."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(input, _wide(layer, input), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ _wide(ctx.layer, gradient), None


def _wide(layer: QuantizedLinear, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty((layer.out_features, layer.in_features))
