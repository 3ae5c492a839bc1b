"""What settings need, estimated from the corners of the box of all settings: what the search is compared with.

The peak is the largest of many moments, each affine in tokens and in recomputed layers, so what lies between corners is
mostly on or under the line between them (not in rows of logits, of which there are no more than targets).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from sartor.memory.search import ExecutionOptions, SearchSpace, Setting


def between_corners(
    free: SearchSpace, needed: Callable[[Setting], int], saved: Callable[[ExecutionOptions], int] = lambda execution: 0
) -> Callable[[Setting, int], float]:
    """An estimate for `search`.

    Args:
        free: what there is to choose from.
        needed: bytes of a setting; asked at corners alone.
        saved: bytes that the optimizer's part of a way spares, which is not asked for.
    """

    def about(setting: Setting, most_tokens: int) -> float:
        # The most tokens may be a whole optimizer batch, which needs no gradients beside its forward pass: a jump.
        fewer = tuple(count for count in free.tokens if count < most_tokens)
        tokens = fewer if setting.micro_batch_tokens < most_tokens else (most_tokens,)
        rows = free.rows[-1:] if setting.loss_chunk_rows == free.rows[-1] else free.rows
        plain = replace(free.executions[0], recomputes_cheap=setting.execution.recomputes_cheap)
        box = SearchSpace(tokens, free.layers, rows, free.executions)
        return interpolated(box, needed, replace(setting, execution=plain)) - saved(setting.execution) + saved(plain)

    return about


def interpolated(box: SearchSpace, needed: Callable[[Setting], int], setting: Setting) -> float:
    """About what a setting needs: on the line between the corners of a box around it."""
    axes = (
        _ends(box.tokens, setting.micro_batch_tokens),
        _ends(box.layers, setting.recomputed_layers),
        _ends(box.rows, setting.loss_chunk_rows),
    )
    total = 0.0
    for (tokens, a), (layers, b), (rows, c) in itertools.product(*axes):
        total += a * b * c * needed(Setting(tokens, layers, rows, setting.execution))
    return total


def _ends(values: Sequence[int], at: int) -> list[tuple[int, float]]:
    """The least and the greatest value with their shares in `at`; those without a share are left out."""
    low, high = values[0], values[-1]
    share = (at - low) / (high - low) if high > low else 0.0
    return [(value, part) for value, part in ((low, 1 - share), (high, share)) if part > 0]
