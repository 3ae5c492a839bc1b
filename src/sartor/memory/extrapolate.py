"""From a few layers to many: the memory of each stretch of a pass is affine in how many layers of each kind there are.

In: the timelines of a few small models made of some of a model's layers.  Out: the timeline of the model.  What it
keeps true: nothing is extrapolated that was not proven on the spot: all that was simulated must lie on one affine map,
to the byte, in every component of every stretch.

What a stretch needs is what it needs by itself, which depends on where it is (the first layer, the last one, one of
some kind between them), plus so much for each layer of each kind that there is (weights, states), plus so much for
each that lies below it (activations, and in the backward pass gradients that are not there yet), plus what layers of a
kind share, as long as there is one below or here (rotary frequencies of sliding attention).  Each phase of each pass
has its own coefficients: gradients of an earlier micro-batch may be there or not.

Example: 3 and 4 layers of one kind: the second of 4 layers, beside the second of 3, says what one layer more costs in
all; beside the third of 4, what one layer below costs; the end of the pass, above all layers, must be both further on.

Which few layers, in which order, show what each kind of layer costs, `layer_subsets` says: short sequences of kinds
that begin, end and go from kind to kind only as the model does, in which every such neighbourhood occurs; their counts
of layers span the model's own; and there is one subset more than is needed, so that what the others say of it can be
held against it.

Example: sliding and full attention, `sssssfsssssfssss`, come to `ssfs`, `sssfs`, `ssfsfs` and, to check, `sssfsfs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from sartor.memory.prediction import Component, Phase, Stretch

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a step a stretch is."""

    part: int
    """Which pass, counted in the order of the step."""
    label: tuple[str, ...]
    """What it is in its pass, whatever the number of layers."""
    num_below: int
    is_layer: bool


def extrapolated(known: Mapping[Kinds, Sequence[Stretch]], wanted: Kinds) -> list[Stretch] | None:
    """The timeline of a model's passes; None where what is known does not lie on one affine map, or leaves it open.

    Args:
        known: kinds of a small model's layers to its timeline, which has all its layers.
        wanted: kinds of the model's layers.
    """
    kinds = sorted(set(wanted))
    rows: dict[int, list[tuple[_Place, Kinds, Stretch]]] = {}
    for subset, timeline in known.items():
        for place, stretch in zip(_places(timeline, subset), timeline, strict=True):
            rows.setdefault(place.part, []).append((place, subset, stretch))
    longest = max(known, key=len)
    outline = _outline(known[longest], len(longest), len(wanted))
    maps: dict[int, _Map] = {}
    for part, observed in rows.items():
        labels = list(dict.fromkeys(place.label for place, _, _ in observed))
        found = _Map.through(kinds, labels, observed)
        if found is None:
            return None
        maps[part] = found
    timeline = []
    for place, (phase, layer) in zip(_places(outline, wanted), outline, strict=True):
        components = maps[place.part].at(place, wanted)
        if components is None:
            return None
        timeline.append(Stretch(phase, layer, components))
    return timeline


def _outline(timeline: Sequence[Stretch], num_layers: int, wanted: int) -> list[tuple[str, int | None]]:
    """(phase, layer) of each stretch with `wanted` layers in place of `num_layers`."""
    outline: list[tuple[str, int | None]] = []
    for stretch in timeline:
        before = outline[-1] if outline else None
        outline.append((stretch.phase, stretch.layer))
        if stretch.layer is None:
            continue
        is_up = stretch.phase == Phase.FORWARD
        if is_up and stretch.layer == num_layers - 1:
            outline += [(stretch.phase, layer) for layer in range(num_layers, wanted)]
        elif not is_up and (before is None or before[1] is None):
            outline[-1:] = [(stretch.phase, layer) for layer in range(wanted - 1, num_layers - 2, -1)]
    return outline


def _places(timeline: Sequence[Stretch] | Sequence[tuple[str, int | None]], kinds: Kinds) -> list[_Place]:
    """Where each stretch is: layers by their kind, and whether they are the first, the last or between."""
    found: list[_Place] = []
    part, phase_before, num_below, since = -1, "", 0, 0
    for stretch in timeline:
        phase, layer = stretch if isinstance(stretch, tuple) else (stretch.phase, stretch.layer)
        if phase != phase_before:
            part, since = part + 1, 0
            num_below = 0 if phase == Phase.FORWARD else len(kinds)
        phase_before = phase
        if layer is None:
            since += 1
            label = (phase, f"{since} above {'all' if num_below else 'no'} layers")
            found.append(_Place(part, label, num_below, is_layer=False))
            continue
        edge = "first" if layer == 0 else "last" if layer == len(kinds) - 1 else "between"
        found.append(_Place(part, (phase, edge, str(kinds[layer])), layer, is_layer=True))
        num_below, since = (layer + 1 if phase == Phase.FORWARD else layer), 0
    return found


class _Map:
    """An affine map from where a stretch is, and which layers there are, to bytes by component."""

    def __init__(self, kinds: list[int], labels: list[tuple[str, ...]]) -> None:
        self._kinds = kinds
        self._labels = labels
        self._equations = Equations()

    @classmethod
    def through(
        cls, kinds: list[int], labels: list[tuple[str, ...]], observed: Sequence[tuple[_Place, Kinds, Stretch]]
    ) -> _Map | None:
        """The map on which all that was observed lies; None where there is none."""
        found = cls(kinds, labels)
        for place, subset, stretch in observed:
            values = [stretch.components.get(part, 0) for part in Component]
            if not found._equations.add(found._features(place, subset), values):
                return None
        return found

    def at(self, place: _Place, kinds: Kinds) -> dict[Component, int] | None:
        """Bytes of a stretch of a model with these layers; None where nothing observed says it."""
        if place.label not in self._labels:
            return None
        coefficients, rest = self._equations.reduced(self._features(place, kinds), [0] * len(Component))
        if any(coefficients) or any(value > 0 or value.denominator != 1 for value in rest):
            return None
        return {part: -int(value) for part, value in zip(Component, rest, strict=True)}

    def _features(self, place: _Place, kinds: Kinds) -> list[int]:
        own = [int(label == place.label) for label in self._labels]
        below = counts(kinds[: place.num_below], self._kinds)
        here = counts(kinds[: place.num_below + place.is_layer], self._kinds)
        return [*own, *counts(kinds, self._kinds), *below, *(int(count > 0) for count in here)]
