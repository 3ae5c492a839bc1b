"""Float32 numbers rounded to bfloat16 at random, so that what is lost each time is not lost on average.

A bfloat16 number is the upper half of a float32 number's bits.  16 random bits are added to the lower half, and the
lower half is cut off: a number goes up with the share of the way that it is up already, so that its mean is itself
(Gupta et al. 2015, section 3, https://huggingface.co/papers/1502.02551).

Example: bfloat16 has 1 and 1.0078125, and nothing between.  1.001 becomes the upper one with probability 0.128: of 100
additions of 0.001 to a weight of 1, each rounded like this, about 13 go up, to 1.1; rounded to the nearest, none does.
"""

from __future__ import annotations

import hashlib

import torch

LARGEST = torch.finfo(torch.bfloat16).max
"""Above it nothing is rounded up: a finite number stays one."""
NORM_VALUES = 1 << 22
"""Of bfloat16 gradients that are made wide at a time."""
_LOWER_BITS = 16
_NOT_A_NUMBER = 0x7FC00000


def round_stochastically_(wide: torch.Tensor, key: tuple[int, ...]) -> torch.Tensor:
    """Round float32 numbers to bfloat16 numbers in place; they keep float32's width.

    Up or down is drawn from a generator of its own: the same key gives the same bits on the same kind of device, and
    torch's global generators are left alone.  Infinities, numbers that are none, and numbers that bfloat16 has stay.

    Args:
        wide: float32, contiguous.
        key: what the random bits are of.
    """
    bits = wide.view(torch.int32)
    generator = torch.Generator(wide.device)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "big") >> 1)
    up = torch.empty_like(bits).random_(0, 1 << _LOWER_BITS, generator=generator)
    is_nan = wide.isnan()
    up.masked_fill_(~(wide.abs() < LARGEST), 0)
    bits.add_(up).bitwise_and_(-1 << _LOWER_BITS).masked_fill_(is_nan, _NOT_A_NUMBER)
    return wide


def norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of gradients, in float32 also where they are in bfloat16."""
    if all(gradient.dtype != torch.bfloat16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = []
    for gradient in gradients:
        parts = gradient.reshape(-1).split(NORM_VALUES)
        norms += [torch.linalg.vector_norm(part.float()) for part in parts]
    device = gradients[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))
