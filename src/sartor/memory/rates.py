"""How fast a device multiplies and moves bytes: listed for GPUs, measured on the machine at hand.

In: the name of a GPU, or what was measured.  Out: `Rates`, with the word for where they come from.  What it keeps true:
a time that rests on a listed rate is marked as such.

Listed: the makers' dense rates (without sparsity), with sums in float32; and the memory that torch reports as the
device's total, which is less than what is written on the box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sartor.device import CUDA, Kind
from sartor.errors import ConfigurationError

_GIB = 1 << 30
_PCIE_3, _PCIE_5 = 1.2e10, 5.0e10
"""Bytes per second that 16 lanes reach, of 15.8 and 63 GB/s."""


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU."""

    name: str
    memory_bytes: int
    half_rate: float
    """Matrix products in 16 bits, FLOP/s."""
    float32_rate: float
    bytes_per_second: float
    has_bf16: bool = True
    host_bytes_per_second: float = 2.5e10
    """Between its memory and the host's: what PCI Express 4.0 with 16 lanes reaches of its 31.5 GB/s."""


CARDS = {
    card.name.lower(): card
    for card in (
        Card("T4", int(14.75 * _GIB), 65e12, 8.1e12, 0.32e12, has_bf16=False, host_bytes_per_second=_PCIE_3),
        Card("V100", int(15.77 * _GIB), 125e12, 15.7e12, 0.90e12, has_bf16=False, host_bytes_per_second=_PCIE_3),
        Card("L4", int(22.05 * _GIB), 121e12, 30.3e12, 0.30e12),
        Card("A10", int(22.06 * _GIB), 125e12, 31.2e12, 0.60e12),
        Card("RTX3090", int(23.56 * _GIB), 71e12, 35.6e12, 0.936e12),
        Card("RTX4090", int(23.52 * _GIB), 165e12, 82.6e12, 1.008e12),
        Card("L40S", int(44.4 * _GIB), 362e12, 91.6e12, 0.864e12),
        Card("A100-40GB", int(39.4 * _GIB), 312e12, 19.5e12, 1.555e12),
        Card("A100", int(79.1 * _GIB), 312e12, 19.5e12, 2.039e12),
        Card("H100", int(79.1 * _GIB), 989e12, 67e12, 3.35e12, host_bytes_per_second=_PCIE_5),
        Card("H200", int(139.8 * _GIB), 989e12, 67e12, 4.8e12, host_bytes_per_second=_PCIE_5),
    )
}
"""By name in small letters.  A100 and H100 are those of 80 GB."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a step's time is made of."""

    flops_per_second: float
    """That a step reaches, in the compute dtype."""
    bytes_per_second: float
    source: str
    """"listed" or "measured", and what of."""
    host_bytes_per_second: float = _PCIE_3
    """Between the device's memory and the host's; always listed."""


def card(name: str) -> Card:
    """The GPU of this name, in whatever spelling: `RTX 4090`, `nvidia-h100`.

    Raises:
        ConfigurationError: it is not listed.
    """
    key = re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
    for known, found in CARDS.items():
        if key == known.replace("-", "") or key == f"{known}80gb":
            return found
    names = ", ".join(entry.name for entry in CARDS.values())
    raise ConfigurationError(
        f"--gpu {name}: this GPU is not listed; listed are {names}. Give its memory instead: --memory 16GB"
    )


def listed(card: Card, compute_dtype: str) -> Rates:
    """A GPU's rates, as far as a training reaches them."""
    rate = card.float32_rate if compute_dtype == "float32" else card.half_rate
    return Rates(
        rate * CUDA.reached_share,
        card.bytes_per_second,
        f"listed: {rate / 1e12:,.0f} TFLOP/s in {compute_dtype} for a {card.name}, of which "
        f"{CUDA.reached_share:.0%} is assumed to be reached",
        card.host_bytes_per_second,
    )


def measured(matrix_rate: float, kind: Kind, compute_dtype: str) -> Rates:
    """This machine's rates.

    Args:
        matrix_rate: FLOP/s of square matrix products, measured now.
        kind: of the device that was measured.
        compute_dtype: of the products.
    """
    return Rates(
        matrix_rate * kind.reached_share,
        kind.bytes_per_second,
        f"measured: {matrix_rate / 1e9:,.0f} GFLOP/s in {compute_dtype} on this machine's {kind.name}",
    )


def memory_bytes(text: str) -> int:
    """`16GB`, `800 MB`, `15.5GiB` as bytes.

    Raises:
        ConfigurationError: it is no amount of memory.
    """
    units = {"mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    if found is None or found[2].lower() not in units or float(found[1]) <= 0:
        raise ConfigurationError(f"--memory {text} is no amount of memory: write it as 16GB, 800MB or 15.5GiB")
    return int(float(found[1]) * units[found[2].lower()])
