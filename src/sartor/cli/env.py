"""`sartor env`: what a bug report needs, on standard output; no secret is printed."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence

from sartor import device
from sartor.errors import ConfigurationError
from sartor.masking import masked
from sartor.version import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "peft",
    "huggingface_hub",
    "safetensors",
    "trl",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")
_PREFIXES = (
    "ACCELERATE_",
    "CUDA_",
    "HF_",
    "KMP_",
    "LD_PRELOAD",
    "LOCAL_RANK",
    "MALLOC_",
    "MASTER_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "RANK",
    "SARTOR_",
    "THP_",
    "TOKENIZERS_",
    "TORCH_",
    "TRANSFORMERS_",
    "WORLD_SIZE",
)


def usage() -> str:
    """What `sartor env --help` prints."""
    return "usage: sartor env\n\nPrints versions, hardware and settings for a bug report; no tokens."


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor env`; returns the exit code.  Raises SartorError."""
    if argv:
        raise ConfigurationError(f"sartor env takes no arguments, but got {' '.join(argv)}")
    lines = [*_software(), *_hardware(), *_devices(), *_variables(dict(os.environ))]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    return 0


def _software() -> list[tuple[str, str]]:
    lines = [("sartor", __version__), ("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            lines.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            lines.append((name, "not installed"))
    return [*lines, ("system", platform.platform())]


def _hardware() -> list[tuple[str, str]]:
    import psutil

    information = device.cpu_information()
    flags = [flag for flag in _CPU_FLAGS if flag in device.cpu_flags()]
    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("cpu", information.get("model name") or platform.processor() or platform.machine()),
        ("cores", f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical, {usable} usable"),
        ("cpu flags", ", ".join(flags) or "none of " + ", ".join(_CPU_FLAGS)),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available"),
    ]


def _devices() -> list[tuple[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [("devices", f"torch cannot be loaded: {error}")]
    return [("threads", str(torch.get_num_threads())), *device.described()]


def _variables(environment: dict[str, str]) -> list[tuple[str, str]]:
    """Environment variables that change how training goes; of secrets only that they are set."""
    return sorted(masked({name: value for name, value in environment.items() if name.startswith(_PREFIXES)}).items())
