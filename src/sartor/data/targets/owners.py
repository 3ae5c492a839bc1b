"""Which message each character of a conversation's text was written for, with any template that can be traced.

What comes in: checked rows.  What goes out: the text, and for each character a message's number.  What it keeps true:
a character of several messages that cannot be told apart is nobody's, and then nothing is said of the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.rows.formats import TrainingRow
from sartor.data.templates.provenance.render import PerTemplate, Renderer, TraceError
from sartor.data.templates.provenance.shadow import MIX, Kind, tag_of
from sartor.data.templates.rendering import tools_of

_FIRST = ord(tag_of(0, Kind.LITERAL))
_PER_MESSAGE = ord(tag_of(1, Kind.LITERAL)) - _FIRST


class Owners:
    """Finds the owners of characters; each template is compiled once."""

    def __init__(self, tokenizer: Any) -> None:
        self._renderers = PerTemplate(tokenizer, Renderer)

    def of(self, row: TrainingRow) -> tuple[str, NDArray[np.int64]] | None:
        """The row's text, and the number of the message that each of its characters is of; None: it cannot be told.

        What the template writes outside of any message belongs to the one before it, or to the first.

        Worked example: `<s>U:Hi A:Yo` with `...000aa11bb` is 0 up to `Hi`, and 1 from ` A:` on.
        """
        messages, tools = row.messages, tools_of(row)
        renderer = self._renderers.of(tools)
        try:
            traced = renderer.traced(renderer.conversation(messages, tools, row.template_keywords), len(messages))
        except TraceError:
            return None
        if MIX in traced.tags:
            return None
        codes = np.frombuffer(traced.tags.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        places = np.maximum.accumulate(np.where(codes >= _FIRST, np.arange(len(codes)), -1))
        numbers = np.where(places >= 0, (codes[np.maximum(places, 0)] - _FIRST) // _PER_MESSAGE, 0)
        return traced.text, numbers
