"""Text for Markdown: whatever a value is, it is shown as it is and breaks nothing around it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

_JOINERS = "\u200c\u200d"
_SPECIAL = re.compile(r"([\\`*\[\]<>|])")


def table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns; the cells are Markdown already."""
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """An option's value; floats with all their digits, for a card is read to repeat the run."""
    return repr(value) if isinstance(value, float) else text(str(value))


def loss_number(value: float) -> str:
    """A loss to four places."""
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Seconds as people say them: `4.2 s`, `1 min 13 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def one_line(value: str) -> str:
    """Printable, on one line: a line break in a name would end a heading or a table row, or the metadata.

    Joiners stay, for several scripts are spelt with them.
    """
    kept = (character if character.isprintable() or character in _JOINERS else " " for character in value)
    return " ".join("".join(kept).split())


def text(value: str) -> str:
    """Markdown text that is shown as it is."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: str) -> str:
    """What stands between backticks, in a table too."""
    return one_line(value).replace("`", "'").replace("|", "/")
