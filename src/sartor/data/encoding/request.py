"""What is to be prepared, and how: one record that the steps of preparing hand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sartor.data.rows.formats import Reading
from sartor.records import DataSettings, Packing

if TYPE_CHECKING:
    import datasets

Packer = Callable[[Any, int, str], Packing]
"""Takes lengths, the block's length and the strategy: `sartor.batching.packing.pack`."""


def silently(message: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be prepared, and how."""

    dataset: datasets.Dataset | datasets.IterableDataset
    tokenizer: Any
    reading: Reading
    settings: DataSettings
    name: str = "train"
    """What the rows are for; messages use it."""
    end_tokens: tuple[str, ...] = ()
    """Texts of tokens at which generation stops, besides the tokenizer's end-of-text token."""
    pack: Packer | None = None
    say: Callable[[str], None] = silently
    """Tells the user what happens to the cache."""
