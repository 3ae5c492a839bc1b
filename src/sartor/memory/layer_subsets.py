"""Small models that stand for a large one: which few of its layers, in which order, show what each kind of layer costs.

In: the kind of each layer of a model, in order.  Out: subsets, each a short sequence of kinds.  What it keeps true:
each subset begins, ends and goes from kind to kind only as the model does, and every such neighbourhood occurs; their
counts of layers span the model's own; and there is one subset more than is needed, so that what the others say of it
can be held against it.

Example: sliding and full attention, `sssssfsssssfssss`, come to `ssfs`, `sssfs`, `ssfsfs` and, to check, `sssfsfs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

Kind = int
"""Layers of a kind are alike in all that costs memory."""
Kinds = tuple[Kind, ...]
_EDGE = -1


def layer_subsets(kinds: Sequence[Kind]) -> list[Kinds]:
    """The layer subsets of a model, the one that checks last; empty where there are none.

    Args:
        kinds: of all layers, in order.
    """
    model = tuple(kinds)
    base = _shortest(model)
    grown: list[Kinds] = []
    segments: list[tuple[int, Kinds]] = []
    while not _spans([base, *grown], model):
        found = _grown(base, model, [base, *grown])
        if found is None:
            return []
        segments.append(found)
        grown.append(_inserted(base, *found))
    if not grown:  # as small as a subset
        return []
    check = base
    for _, segment in segments * (2 if len(segments) == 1 else 1):
        longer = (_inserted(check, place, segment) for place in range(1, len(check)))
        fitting = (subset for subset in longer if _neighbourhoods(subset) == _neighbourhoods(model))
        check = next(fitting, check)
    chosen = [base, *grown, check]
    is_largest = len(check) > max(map(len, chosen[:-1]))
    return chosen if is_largest and _has_enough(model, check) else []


def are_less_work(chosen: Sequence[Kinds], kinds: Sequence[Kind]) -> bool:
    """Than the whole model: they have fewer layers, all together."""
    return 0 < sum(map(len, chosen)) < len(kinds)


def places(kinds: Sequence[Kind], subset: Kinds) -> list[int]:
    """Layers of the model that make up a subset: of each kind the first ones."""
    left = {kind: iter([place for place, found in enumerate(kinds) if found == kind]) for kind in set(subset)}
    return [next(left[kind]) for kind in subset]


def counts(kinds: Sequence[Kind], of: Sequence[Kind]) -> list[int]:
    """How many layers there are of each kind in `of`."""
    return [sum(1 for kind in kinds if kind == wanted) for wanted in of]


def _shortest(model: Kinds) -> Kinds:
    """The model without every segment that it can lose without losing a neighbourhood."""
    wanted = _neighbourhoods(model)
    subset = model
    while True:
        smaller = _without_longest(subset, wanted)
        if smaller is None:
            return subset
        subset = smaller


def _without_longest(subset: Kinds, wanted: set[tuple[int, int, int]]) -> Kinds | None:
    for length in range(len(subset) - 2, 0, -1):
        for start in range(len(subset) - length + 1):
            smaller = subset[:start] + subset[start + length :]
            if _neighbourhoods(smaller) == wanted:
                return smaller
    return None


def _neighbourhoods(kinds: Kinds) -> set[tuple[int, int, int]]:
    """Pairs of neighbours, ends included; and which kinds there are away from the ends."""
    ended = (_EDGE, *kinds, _EDGE)
    pairs = {(0, one, other) for one, other in pairwise(ended)}
    return pairs | {(1, kind, 0) for kind in kinds[1:-1]}


def _grown(base: Kinds, model: Kinds, known: Sequence[Kinds]) -> tuple[int, Kinds] | None:
    """The shortest segment of the model whose insertion shows something new: (place, segment)."""
    wanted = _neighbourhoods(model)
    for length in range(1, len(model)):
        for segment in dict.fromkeys(model[start : start + length] for start in range(len(model) - length + 1)):
            for place in range(1, len(base)):
                longer = _inserted(base, place, segment)
                if not _has_enough(model, longer) or _spans(known, longer):
                    continue
                if _neighbourhoods(longer) == wanted:
                    return place, segment
    return None


def _inserted(kinds: Kinds, place: int, segment: Kinds) -> Kinds:
    return kinds[:place] + segment + kinds[place:]


def _has_enough(model: Kinds, subset: Kinds) -> bool:
    return all(model.count(kind) >= subset.count(kind) for kind in set(subset))


def _spans(known: Sequence[Kinds], other: Kinds) -> bool:
    """Whether the counts of kinds of `other` are an affine combination of those of `known`."""
    every = sorted({kind for kinds in (*known, other) for kind in kinds})
    equations = Equations()
    for kinds in known:
        equations.add((1, *counts(kinds, every)), ())
    return not any(equations.reduced((1, *counts(other, every)), ())[0])


class Equations:
    """Linear equations, solved as they come: coefficients of what is unknown, and values for several of these."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[list[Fraction], list[Fraction]]] = {}
        """Column of an equation's first coefficient, which is 1, to the equation."""

    def add(self, coefficients: Sequence[int], values: Sequence[int]) -> bool:
        """Take one more; False where it contradicts those that are there."""
        left, rest = self.reduced(coefficients, values)
        lead = next((column for column, value in enumerate(left) if value), None)
        if lead is None:
            return not any(rest)
        self._rows[lead] = [value / left[lead] for value in left], [value / left[lead] for value in rest]
        return True

    def reduced(self, coefficients: Sequence[int], values: Sequence[int]) -> tuple[list[Fraction], list[Fraction]]:
        """What is left of an equation when those that are known are taken from it."""
        left, rest = [Fraction(value) for value in coefficients], [Fraction(value) for value in values]
        for column in range(len(left)):
            factor = left[column]
            if factor and column in self._rows:
                known, known_values = self._rows[column]
                left = [one - factor * other for one, other in zip(left, known, strict=True)]
                rest = [one - factor * other for one, other in zip(rest, known_values, strict=True)]
        return left, rest
