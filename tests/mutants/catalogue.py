"""The mutants: each a small change that makes training wrong, and the tests that must notice.

`old` must occur exactly once in `file`: when the code moves on, the harness says so, and the mutant moves with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break the code."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """pytest arguments; at least one test among them must fail."""


MUTANTS: tuple[Mutant, ...] = ()
