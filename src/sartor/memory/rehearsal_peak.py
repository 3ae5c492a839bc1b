"""The largest moment of a rehearsal, from what was simulated of a step.

In: the update as a rehearsal takes it, and the passes of a step that has one before it.  Out: one stretch.  What it
keeps true: what is added up is what `trainer.rehearsing` does: copies of the model's buffers stand there throughout,
the optimizer's states are those that its update made, and the buffer of logits comes with the first pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sartor.memory.prediction import Component, Stretch
from sartor.memory.tracker import PASS, Phase


def largest_moment(model: nn.Module, update: Stretch, passes: Sequence[Stretch]) -> Stretch:
    """Of its update, or of the pass after it.

    Args:
        model: without memory.
        update: with copies of the model's buffers; without states, where no update is taken.
        passes: of a step that has one before it.
    """
    copies_bytes = sum(buffer.nbytes for buffer in model.buffers())
    states_bytes = update.components.get(Component.OPTIMIZER, 0)
    moments = [dict(update.components) | {Component.LOGITS: 0}]
    for part in passes:
        if part.phase in PASS:
            temporaries = part.components.get(Component.TEMPORARIES, 0) + copies_bytes
            changed = {Component.OPTIMIZER: states_bytes, Component.TEMPORARIES: temporaries}
            moments.append(dict(part.components) | changed)
    return Stretch(Phase.REHEARSAL, None, max(moments, key=lambda components: sum(components.values())))
