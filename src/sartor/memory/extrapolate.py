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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sartor.memory.layer_subsets import Equations, Kinds, counts
from sartor.memory.prediction import Component, Stretch
from sartor.memory.tracker import Phase


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
