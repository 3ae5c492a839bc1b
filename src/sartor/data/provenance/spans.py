"""Where each message's characters lie in a traced text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sartor.data.provenance.shadow import Kind, kind_of, message_of

_RUNS = re.compile(r"(.)\1*", re.DOTALL)


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


def spans_of(tags: str) -> dict[int, Span]:
    """Where each message's characters lie."""
    spans: dict[int, Span] = {}
    previous: int | None = None
    for run in _RUNS.finditer(tags):
        tag = run[1]
        number = message_of(tag)
        if number is not None:
            span = spans.setdefault(number, Span(start=run.start()))
            span.end = run.end()
            span.num_runs += number != previous
            kind = kind_of(tag)
            if kind is not Kind.LITERAL:
                span.kinds.add(kind)
                span.last_field = run.end()
                if span.first_field < 0:
                    span.first_field = run.start()
        previous = number
    return spans
