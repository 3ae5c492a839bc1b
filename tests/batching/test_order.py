"""The order of a run is that of transformers' Trainer, for any seed and epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.batching.order import device_batches, epoch_order, optimizer_batches


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.extend(row.tolist())
        return {"loss": self.weight.sum() + 0.0 * row.sum()}


def trainer_order(folder: Path, num_rows: int, epochs: int, **options: Any) -> list[int]:
    """Rows in the order in which transformers' own Trainer shows them to a model."""
    import transformers

    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False, **options,
    )  # fmt: skip
    model = _Model()
    rows: Any = [{"row": torch.tensor(index)} for index in range(num_rows)]
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    return model.seen


@pytest.mark.parametrize(
    ("options", "seed"), [({}, 42), ({"seed": 7}, 7), ({"seed": 7, "data_seed": 0}, 0), ({"data_seed": 3}, 3)]
)
def test_random_order_equals_the_trainers(tmp_path: Path, options: dict[str, int], seed: int) -> None:
    theirs = trainer_order(tmp_path, 11, 3, **options)

    assert theirs == [index for epoch in range(3) for index in epoch_order(11, seed=seed, epoch=epoch)]


def test_drop_last_equals_the_trainers(tmp_path: Path) -> None:
    theirs = trainer_order(tmp_path, 11, 1, dataloader_drop_last=True)

    batches = device_batches(epoch_order(11, seed=42, epoch=0), 2, drop_last=True)
    assert theirs == [index for batch in batches for index in batch]


def test_sequential_order_is_the_rows_own() -> None:
    assert epoch_order(4, seed=1, epoch=2, strategy="sequential") == [0, 1, 2, 3]


def test_grouped_by_length_is_a_permutation_with_the_longest_first() -> None:
    lengths = [3, 50, 4, 2, 9, 30, 8, 1]

    order = epoch_order(8, seed=1, epoch=0, strategy="group_by_length", lengths=lengths, batch_size=2)

    assert sorted(order) == list(range(8))
    assert order[0] == 1  # transformers puts the longest first, so that too much memory shows at once
    assert order == epoch_order(8, seed=1, epoch=0, strategy="group_by_length", lengths=lengths, batch_size=2)
    assert order != epoch_order(8, seed=1, epoch=1, strategy="group_by_length", lengths=lengths, batch_size=2)


@given(st.integers(0, 50), st.integers(0, 2**31), st.integers(0, 5))
def test_each_epoch_visits_every_example_once(num_examples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_examples, seed=seed, epoch=epoch)

    assert sorted(order) == list(range(num_examples))
    assert order == epoch_order(num_examples, seed=seed, epoch=epoch)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    epoch_order(5, seed=1, epoch=0)
    epoch_order(5, seed=1, epoch=0, strategy="group_by_length", lengths=[1] * 5, batch_size=2)

    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_batches_keep_order_and_only_the_last_step_is_smaller(
    num_examples: int, batch_size: int, accumulation: int, drop_last: bool
) -> None:
    order = list(range(num_examples))
    batches = device_batches(order, batch_size, drop_last=drop_last)
    steps = list(optimizer_batches(batches, accumulation))

    kept = num_examples // batch_size * batch_size if drop_last else num_examples
    assert [index for step in steps for batch in step for index in batch] == order[:kept]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(len(step) == accumulation for step in steps[:-1])


def test_batches_by_hand() -> None:
    assert device_batches([3, 1, 0, 2, 4], 2) == [[3, 1], [0, 2], [4]]
    assert device_batches([3, 1, 0, 2, 4], 2, drop_last=True) == [[3, 1], [0, 2]]
    assert list(optimizer_batches([[3, 1], [0, 2], [4]], 2)) == [[[3, 1], [0, 2]], [[4]]]
