"""Where each message's characters lie in a traced text, and of which kinds they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sartor.data.templates.provenance.shadow import Kind, kind_of, message_of


@dataclass(slots=True)
class Span:
    """Where a message's characters lie: all of them, and those of its fields.  -1: there are none."""

    start: int = -1
    end: int = -1
    num_runs: int = 0
    first_field: int = -1
    last_field: int = -1
    """End of the last character of a field."""
    kinds: set[Kind] = field(default_factory=set)


def runs_of(tags: str) -> Iterator[tuple[int, int]]:
    """First and last + 1 character of each run of equal tags: `aab` is (0, 2), (2, 3)."""
    codes = np.frombuffer(tags.encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = [*(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), *([len(tags)] if tags else [])]
    return zip([0, *ends[:-1]], ends, strict=True) if ends else iter(())


def spans_of(tags: str) -> dict[int, Span]:
    """Where each message's characters lie."""
    spans: dict[int, Span] = {}
    previous: int | None = None
    for start, end in runs_of(tags):
        tag = tags[start]
        number = message_of(tag)
        if number is not None:
            span = spans.setdefault(number, Span(start=start))
            span.end = end
            span.num_runs += number != previous
            kind = kind_of(tag)
            if kind is not Kind.LITERAL:
                span.kinds.add(kind)
                span.last_field = end
                if span.first_field < 0:
                    span.first_field = start
        previous = number
    return spans
