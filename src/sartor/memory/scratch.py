"""What kernels take for themselves while they run, beside their results: a table by operator, with its source.

In: an operator and its arguments.  Out: bytes.  A live set sees results only; what a kernel allocates and frees inside
is invisible to it, and is added from this table.
"""

from __future__ import annotations

from typing import Any

from sartor.memory.tracker import ScratchRule


def rules(device: str) -> ScratchRule:
    """The table of a device type, "cpu" or "cuda"."""

    def scratch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        return 0

    return scratch
