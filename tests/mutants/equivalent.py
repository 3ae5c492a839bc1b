"""Random mutations that change nothing which could be tested: each with the reason, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    """A mutation that no test can notice."""

    file: str
    function: str
    old: str
    new: str
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = ()
