"""What a device is, and what only its kind can do: the one place that asks "cpu" or "cuda".

In: a torch device, or its name ("cpu", "cuda:1").  Out: its `Kind`, a frozen row of facts, and functions for what torch
has under another name for each kind: free memory, peaks, waiting, generators.  What it keeps true: no other module
compares kinds of devices.

Why rows of facts and not a class for each kind: rooms decide by what is true of a device (its memory is the machine's,
its allocator counts its own peak), which reads as the reason of a decision, where "it is a CPU" would leave the reason
to be guessed.  Another kind, such as Apple's "mps", is another row and its answers below; nothing elsewhere changes.

It is imported by every room and knows none.  torch is imported where it is asked, so that this module costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

HOST = "cpu"
"""torch's name of the processor, and of the host's memory."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What all devices of one kind have in common."""

    name: str
    """torch's, as in "cuda:0"."""
    label: str
    """In messages."""
    is_host: bool
    """It is the processor: its memory is the machine's, it computes in threads, and sums come in one order.  Otherwise
    it has memory and an allocator of its own, what it computes is queued, and each kernel costs a launch."""
    most_tokens: int
    """In float32, at once: beyond them nothing is gained (docs/log.md)."""
    most_half_tokens: int
    """The same in 16 bits."""
    reached_share: float
    """Of the rate of large matrix products that a step reaches."""
    bytes_per_second: float
    """Of a step's reads and writes of weights and gradients."""
    block_bytes: int
    """What its allocator hands out is a multiple of it."""
    needs_triton: bool
    """Compiled programs are made by Triton; otherwise by a C++ compiler."""


CPU = Kind(
    name=HOST,
    label="CPU",
    is_host=True,
    most_tokens=1_024,
    most_half_tokens=2_048,
    reached_share=0.75,  # measured: 72 to 82 % (docs/log.md)
    bytes_per_second=1e10,  # of two cores, from the table in docs/log.md
    block_bytes=1,
    needs_triton=False,
)
CUDA = Kind(
    name="cuda",
    label="CUDA",
    is_host=False,
    most_tokens=16_384,
    most_half_tokens=16_384,
    reached_share=0.4,  # an assumption: large models reach 35 to 50 %
    bytes_per_second=1e12,
    block_bytes=512,  # CUDACachingAllocator.cpp, kMinBlockSize
    needs_triton=True,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (CPU, CUDA)}
"""The kinds that Sartor computes on, by torch's names."""
ACCELERATORS = tuple(kind.name for kind in KINDS.values() if not kind.is_host)


def kind_of(device: torch.device | str) -> Kind:
    """The kind of a device.

    Example: of "cuda:1", and of `torch.device("cuda", 1)`, it is `CUDA`.

    Raises:
        ConfigurationError: Sartor does not compute on such devices.
    """
    name = str(device).partition(":")[0]
    if name not in KINDS:
        raise ConfigurationError(f"the device {name!r} is not supported: use {' or '.join(KINDS)}.")
    return KINDS[name]


def is_supported(device: torch.device | str) -> bool:
    """Whether Sartor computes on devices of this kind."""
    return str(device).partition(":")[0] in KINDS


def num_devices(kind: Kind) -> int:
    """How many devices of a kind this process sees; 0 where this build of torch has none."""
    import torch

    if kind.is_host:
        return 1
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def default_kind() -> Kind:
    """The kind that is computed on where nobody says: an accelerator where there is one."""
    return next((KINDS[name] for name in ACCELERATORS if num_devices(KINDS[name])), CPU)


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor is in the host's memory."""
    return tensor.device.type == HOST


# --- dtypes ----------------------------------------------------------------------------------------------------------


def cpu_information(path: str = "/proc/cpuinfo") -> Mapping[str, str]:
    """The first processor's entries; empty where the system does not list them."""
    if sys.platform != "linux":
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Names of the instructions that the processor has, in the system's words; arm64 calls them features."""
    information = cpu_information()
    return frozenset(information.get("flags", information.get("Features", "")).split())


def cpu_has_bf16() -> bool:
    """Whether this processor has bfloat16 matrix instructions.

    From its flags, never by timing: without them a bfloat16 product is 15 to 500 times slower than a float32 one.
    """
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})  # x86: the first two; arm64 lists "bf16"


def cpu_has_amx() -> bool:
    """Whether this processor multiplies bfloat16 in tiles (Intel's AMX), for which torch packs its operands."""
    return "amx_bf16" in cpu_flags()


def fast_dtypes(device: torch.device) -> frozenset[torch.dtype]:
    """The floating dtypes up to 32 bits that a device has instructions for; products in others are very slow there."""
    import torch

    found = {torch.float32}
    if kind_of(device).is_host:
        if cpu_has_bf16():
            found.add(torch.bfloat16)
        if not cpu_flags().isdisjoint({"avx512_fp16", "amx_fp16"}):
            found.add(torch.float16)
        return frozenset(found)
    capability = torch.cuda.get_device_capability(device)
    if capability >= (7, 0):
        found.add(torch.float16)
    if capability >= (8, 0):
        found.add(torch.bfloat16)
    return frozenset(found)


def architecture(device: torch.device) -> str:
    """What a GPU's maker calls its generation: `sm_75`."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


# --- memory ----------------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device that has its own; None where it is the machine's (see `memory.limits`)."""
    import torch

    return None if kind_of(device).is_host else int(torch.cuda.mem_get_info(device)[0])


def empty_cache(device: torch.device) -> None:
    """Give what the device's allocator keeps for later back to the device."""
    import torch

    if not kind_of(device).is_host:
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device | None = None) -> int:
    """Peak memory so far: allocated on an accelerator, or resident in this process; 0 where the system does not say.

    Args:
        device: None: the accelerator in use, else the processor; torch is not loaded to find out.
    """
    if device is None:
        loaded = sys.modules.get("torch")
        counts = loaded is not None and loaded.cuda.is_available() and loaded.cuda.is_initialized()
    else:
        counts = not kind_of(device).is_host
    return allocated_peak(device) if counts else _resident_peak()


def _resident_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def allocated_peak(device: torch.device | None) -> int:
    """The most that an accelerator's allocator has handed out since `reset_peak`; None: of the current one."""
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def reset_peak(device: torch.device) -> None:
    """From now on an accelerator's allocator counts its peak anew."""
    import torch

    torch.cuda.reset_peak_memory_stats(device)


# --- queues and copies -----------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed all that it was asked for."""
    import torch

    if not kind_of(device).is_host:
        torch.cuda.synchronize(device)


def reads_pinned(tensor: torch.Tensor) -> bool:
    """Whether the device that a tensor is on reads the host's memory faster where its pages are pinned."""
    return tensor.device.type in ACCELERATORS


def await_copies() -> None:
    """Wait until copies that the current accelerator was asked for have arrived."""
    import torch

    torch.cuda.current_stream().synchronize()


# --- random generators -----------------------------------------------------------------------------------------------


def generator_states() -> dict[str, list[torch.Tensor]]:
    """The states of every accelerator's generators by kind; nothing of kinds that are not in use."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return {CUDA.name: torch.cuda.get_rng_state_all()}
    return {}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put generators back to what `generator_states` saw; devices that are no longer there are left out."""
    import torch

    for index, state in enumerate(states.get(CUDA.name, ())[: num_devices(CUDA)]):
        torch.cuda.set_rng_state(state, index)


@contextmanager
def generators_apart(device: torch.device) -> Iterator[None]:
    """Within the block torch's draws, on the processor and on this device, move no generator for those outside."""
    import torch

    with torch.random.fork_rng(devices=[] if kind_of(device).is_host else [device.index or 0]):
        yield


# --- for people ------------------------------------------------------------------------------------------------------


def described() -> list[tuple[str, str]]:
    """What torch was built for, and the accelerators it sees: pairs of a name and a sentence for `sartor env`."""
    import torch

    lines = [("cuda build", torch.version.cuda or "none: this torch is for CPUs")]
    if not num_devices(CUDA):
        return [*lines, ("gpu", "none that torch can use")]
    for index in range(num_devices(CUDA)):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm{properties.major}{properties.minor}"
        lines.append((f"gpu {index}", f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, {capability}"))
    return lines
