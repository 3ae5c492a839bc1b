"""Sartor fits a language model to your conversations, and to your machine.

The public names are loaded when first used: importing this package takes a few milliseconds and pulls in no heavy
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sartor.version import __version__

if TYPE_CHECKING:
    from sartor.config import SFTConfig
    from sartor.hf import SFTTrainer

_HOMES = {"SFTConfig": "sartor.config", "SFTTrainer": "sartor.hf"}

__all__ = ["SFTConfig", "SFTTrainer", "__version__"]


def __getattr__(name: str) -> object:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sartor' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
