"""From a few layers to many: the memory of a stretch is affine in the number of layers where all layers are alike.

In: a function that simulates a model with its first n layers.  Out: the timeline for any number.  What it keeps true:
nothing is extrapolated that was not proven on the spot: the line through 3 and 4 layers must meet 5 layers to the byte,
in every component of every stretch; else the whole model is simulated.

Each stretch is fitted apart, since the peak moves from one to another as layers are added.  Layers are named by their
distance from the nearer end, so that stretches of models of different depth correspond: of 5 layers the roles are 0, 1,
inner, -2, -1.  In between, where the line runs from layer 1 to layer -2, memory is affine in the layer's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sartor.memory.prediction import Component, Stretch

SMALLEST = 3
"""Layers of the smallest model that has a second and a second to last one."""
FULL_UP_TO = SMALLEST + (SMALLEST + 1) + (SMALLEST + 2)
"""As many layers are simulated in order to extrapolate: no more than that are simulated as they are."""


def extrapolated(step: Callable[[int], Sequence[Stretch]], num_layers: int) -> tuple[Sequence[Stretch], str]:
    """The timeline of `num_layers` layers, and how it was found.

    Args:
        step: simulates the model with its first n layers.
        num_layers: wanted.
    """
    if num_layers <= FULL_UP_TO:
        return step(num_layers), f"simulated in full: {num_layers} layers"
    few, more, check = (step(SMALLEST + extra) for extra in range(3))
    timeline = _at(few, more, SMALLEST, num_layers)
    if timeline is None or not _same(_at(few, more, SMALLEST, SMALLEST + 2), check):
        return step(num_layers), f"simulated in full: {num_layers} layers, since memory is not affine in their number"
    note = (
        f"extrapolated from {SMALLEST} and {SMALLEST + 1} layers to {num_layers}, and to {SMALLEST + 2} without error"
    )
    return timeline, note


def _at(few: Sequence[Stretch], more: Sequence[Stretch], num_few: int, wanted: int) -> list[Stretch] | None:
    """The timeline of `wanted` layers on the line through two timelines, the second of one layer more.

    None where the two are not built alike.
    """
    items_few, items_more = _items(few), _items(more)
    if len(items_few) != len(items_more):
        return None
    found: list[Stretch] = []
    steps = wanted - num_few
    for one, other in zip(items_few, items_more, strict=True):
        if one[0].phase != other[0].phase:
            return None
        if one[0].layer is None or other[0].layer is None:
            if len(one) != len(other) or one[0].layer != other[0].layer:
                return None
            found.append(Stretch(one[0].phase, None, _line(one[0].components, other[0].components, steps)))
            continue
        if len(one) != num_few or len(other) != num_few + 1:
            return None
        found.extend(_layers(one, other, wanted))
    return found


def _items(timeline: Sequence[Stretch]) -> list[list[Stretch]]:
    """Stretches outside of layers one by one; neighbouring layers of a phase together, from layer 0 on."""
    items: list[list[Stretch]] = []
    for stretch in timeline:
        before = items[-1][-1] if items else None
        continues = before is not None and before.layer is not None and before.phase == stretch.phase
        if continues and stretch.layer is not None:
            items[-1].append(stretch)
        else:
            items.append([stretch])
    return items


def _layers(few: Sequence[Stretch], more: Sequence[Stretch], wanted: int) -> list[Stretch]:
    """A run of `wanted` layers, in the order in which the two runs have them: upwards, or downwards in backward."""
    steps = wanted - len(few)
    head, tail = ([_line(few[at].components, more[at].components, steps) for at in ends] for ends in ((0, 1), (-2, -1)))
    between = wanted - 3  # places from the second layer to the last but one
    inner = [
        {key: head[1][key] + (tail[0][key] - head[1][key]) * place // between for key in head[1]}
        for place in range(1, between)
    ]
    numbers = range(wanted) if few[0].layer == 0 else range(wanted - 1, -1, -1)
    return [
        Stretch(few[0].phase, number, components)
        for number, components in zip(numbers, [*head, *inner, *tail], strict=True)
    ]


def _line(few: Mapping[Component, int], more: Mapping[Component, int], steps: int) -> dict[Component, int]:
    """Component by component, `steps` layers beyond the first."""
    return {key: few.get(key, 0) + steps * (more.get(key, 0) - few.get(key, 0)) for key in Component}


def _same(found: Sequence[Stretch] | None, truth: Sequence[Stretch]) -> bool:
    if found is None or len(found) != len(truth):
        return False
    return all(
        one.phase == other.phase
        and one.layer == other.layer
        and all(one.components.get(key, 0) == other.components.get(key, 0) for key in Component)
        for one, other in zip(found, truth, strict=True)
    )
