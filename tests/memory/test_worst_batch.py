"""Which optimizer batches may hold a run's largest micro-batch, and what a trace measures."""

from __future__ import annotations

import numpy as np
import torch

from sartor.batching.cut import cut_flat
from sartor.memory import trace, worst_batch
from sartor.memory.prediction import Phase, Stretch


def test_batches_keep_their_rows() -> None:
    batches = worst_batch.Batches.of([(4, 1), (0,), (2, 3, 5)])
    assert [batches.keys(number) for number in range(3)] == [[4, 1], [0], [2, 3, 5]]


def test_candidates_hold_the_largest_micro_batches_of_any_run() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        tokens = np.minimum(600, generator.lognormal(4, 1, 2_000).astype(np.int64) + 2)
        targets = (tokens * generator.random(2_000)).astype(np.int64)
        batches = worst_batch.Batches.of(generator.permutation(2_000).reshape(-1, 8).tolist())
        limit = int(generator.integers(200, 3_000))
        found = worst_batch.candidates(worst_batch.Rows(tokens, targets), batches, limit)
        assert len(found) <= 3 * worst_batch.CANDIDATES

        def largest(numbers: list[int], of: np.ndarray) -> int:
            best = 0
            for number in numbers:
                keys = batches.keys(number)  # noqa: B023
                for group in cut_flat(tokens[keys].tolist(), limit):  # noqa: B023
                    best = max(best, int(of[[keys[place] for place in group]].sum()))
            return best

        every = list(range(len(batches.starts)))
        assert largest(found, tokens) >= 0.97 * largest(every, tokens)
        longest = int(np.argmax(tokens))
        assert any(tokens[batches.keys(number)].max() == tokens[longest] for number in found)


def test_an_empty_run_has_no_candidates() -> None:
    empty = np.zeros(0, np.int64)
    assert worst_batch.candidates(worst_batch.Rows(empty, empty), worst_batch.Batches.of([]), 100) == []


def test_which_runs_are_rehearsed_unasked() -> None:
    assert not worst_batch.is_tiny(100, 500.0)
    assert not worst_batch.is_tiny(100, None)
    assert worst_batch.is_tiny(worst_batch.SMALLEST_STEPS - 1, 500.0)
    assert worst_batch.is_tiny(100, worst_batch.SMALLEST_RUN_S - 1)
    assert worst_batch.is_costly(160, 1e4)
    assert not worst_batch.is_costly(140, 1e4)


def test_a_trace_sees_what_lived_only_within_a_stretch() -> None:
    size = 1 << 23
    held = torch.ones(size // 4)
    with trace.Trace(torch.device("cpu"), held.nbytes) as watch:
        watch.enter(Phase.FORWARD)
        kept = torch.ones(size)  # 4 bytes each
        watch.enter(Phase.LOSS)
        for _ in range(5):
            (kept * 2).sin().sum()
        watch.enter(Phase.CLIP)
        del kept
        watch.enter(Phase.UPDATE)
    assert [part.num_bytes for part in watch.stretches] == [
        size,  # before
        size + 4 * size,
        size + 4 * size + 8 * size,  # and a sum of 4 bytes, after the larger of both products is gone
        size + 4 * size,
        size,
    ]


def test_the_last_pass_is_a_whole_one() -> None:
    phases = ["first update", "forward", "forward", "loss", "backward", "forward", "loss", "backward", "clip"]
    timeline = [Stretch(phase, None, {}) for phase in phases]
    assert [part.phase for part in trace.last_pass(timeline)] == ["forward", "loss", "backward", "clip"]
