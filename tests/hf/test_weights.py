"""Weighted rows through a whole training: the same steps and the same logged losses as a plain loop in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sartor.errors import ConfigurationError, DataError
from tests.hf.tiny import dataset, losses, make_model, make_tokenizer, stream, texts, trainer, weights

WEIGHTS = [2.0, 0.5, 1.0, 3.0, 0.25, 1.0, 7.0, 0.1, 1.5, 1.0]


def weighted_rows() -> list[dict[str, Any]]:
    return [{**row, "weight": weight} for row, weight in zip(texts(), WEIGHTS, strict=True)]


def plain_training(rows: list[dict[str, Any]], *, batch_size: int, rate: float) -> tuple[list[float], Any]:
    """Losses and the model of SGD on weighted means, one row at a time, in the rows' order."""
    model, tokenizer = make_model().double(), make_tokenizer()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found = []
    for start in range(0, len(rows), batch_size):
        total, weight_sum = torch.zeros((), dtype=torch.float64), 0.0
        for row in rows[start : start + batch_size]:
            ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
            logits = model(ids, use_cache=False).logits[0, :-1]
            total = total + row["weight"] * F.cross_entropy(logits, ids[0, 1:], reduction="sum")
            weight_sum += row["weight"] * (ids.shape[1] - 1)
        optimizer.zero_grad()
        (total / weight_sum).backward()
        optimizer.step()
        found.append(float(total.detach()) / weight_sum)
    return found, model


OPTIONS: dict[str, Any] = {
    "num_train_epochs": 1,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
}


@pytest.mark.parametrize("micro_batch_tokens", [1, 12, None])
def test_a_weighted_training_is_a_plain_loop_with_weighted_means(
    tmp_path: Path, micro_batch_tokens: int | None
) -> None:
    found = trainer(
        tmp_path,
        rows=dataset(weighted_rows()),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
        micro_batch_tokens=micro_batch_tokens,
        **OPTIONS,
    )
    found.train()

    expected, model = plain_training(weighted_rows(), batch_size=3, rate=0.1)
    assert losses(found.state.log_history) == pytest.approx(expected, rel=1e-5)
    truth, start = weights(model), weights(make_model())
    for name, weight in weights(found.model).items():
        moved = (truth[name] - start[name].double()).norm()
        assert (weight.double() - truth[name]).norm() < 1e-4 * moved + 1e-7 * truth[name].norm(), name


def test_a_stream_of_weighted_rows_trains_the_same(tmp_path: Path) -> None:
    options = {**OPTIONS, "max_steps": 5, "per_device_train_batch_size": 2}
    found = trainer(tmp_path, rows=stream(weighted_rows()), **options)
    found.train()
    assert losses(found.state.log_history) == pytest.approx(
        plain_training(weighted_rows(), batch_size=2, rate=0.1)[0], rel=1e-5
    )


def test_evaluation_is_a_weighted_mean_and_counts_do_not_change(tmp_path: Path) -> None:
    plain = trainer(tmp_path, eval_dataset=dataset(texts()))
    found = trainer(tmp_path, eval_dataset=dataset(weighted_rows()))
    metrics, unweighted = found.evaluate(), plain.evaluate()
    expected = plain_training(weighted_rows(), batch_size=10, rate=0.0)[0][0]
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(unweighted["eval_loss"] - expected) > 1e-3
    for key in ("eval_entropy", "eval_mean_token_accuracy"):
        assert metrics[key] == pytest.approx(unweighted[key])


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_rows_keep_their_weights(tmp_path: Path, strategy: str) -> None:
    options = {**OPTIONS, "per_device_train_batch_size": 100, "max_length": 12}
    packed = trainer(
        tmp_path, rows=dataset(weighted_rows()), packing=True, packing_strategy=strategy, padding_free=True, **options
    )
    block = [packed.train_dataset[number] for number in range(len(packed.train_dataset))]
    pairs = sorted(
        (token, weight) for row in block for token, weight in zip(row["input_ids"], row["weights"], strict=True)
    )
    apart = trainer(tmp_path, rows=dataset(weighted_rows()), **options).train_dataset
    assert pairs == sorted(
        (token, weight) for row in apart for token, weight in zip(row["input_ids"], row["weights"], strict=True)
    )


@pytest.mark.parametrize("packing", [False, True])
def test_sources_with_and_without_weights_can_be_mixed(tmp_path: Path, packing: bool) -> None:
    heavy = [{**row, "weight": 2} for row in texts()]
    found = trainer(tmp_path, rows=[(dataset(texts(10, start=20)), 1.0), (dataset(heavy), 1.0)], packing=packing)
    of_heavy = {token for row in heavy for token in make_tokenizer()(row["text"])["input_ids"]}
    pairs = [
        (token, weight)
        for row in found.train_dataset
        for token, weight in zip(row["input_ids"], row["weights"] or [1.0] * len(row["input_ids"]), strict=True)
    ]
    assert {weight for _, weight in pairs} == {1.0, 2.0}
    assert {token for token, weight in pairs if weight == 2} <= of_heavy | {0}
    found.train()


def test_rows_without_weights_have_no_such_column(tmp_path: Path) -> None:
    ones = [{**row, "weight": 1} for row in texts()]
    for rows in (dataset(), dataset(ones)):
        assert "weights" not in trainer(tmp_path, rows=rows).train_dataset.column_names


def test_rows_of_weight_zero_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{**row, "weight": number % 2} for number, row in enumerate(texts())]
    found = trainer(tmp_path, rows=dataset(rows), max_length=None)
    assert len(found.train_dataset) == 5
    assert "weights" not in found.train_dataset.column_names


def own_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return outputs.logits.sum() * 0.0


def test_an_own_loss_refuses_weights_before_training(tmp_path: Path) -> None:
    message = r"an own loss or data_collator .* would not see them"
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, rows=dataset(weighted_rows()), compute_loss_func=own_loss)
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, eval_dataset={"one": dataset(weighted_rows())}, compute_loss_func=own_loss)
    found = trainer(tmp_path, compute_loss_func=own_loss)
    with pytest.raises(ConfigurationError, match=message):
        found.evaluate(dataset(weighted_rows()))
    streamed = trainer(tmp_path, rows=stream(weighted_rows()), max_steps=1, compute_loss_func=own_loss)
    with pytest.raises(ConfigurationError, match=message):
        streamed.train()


def test_an_own_collator_may_weigh_for_itself(tmp_path: Path) -> None:
    seen = []

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        seen.extend(feature["weights"] for feature in features)
        (ids,) = (torch.tensor([feature["input_ids"]]) for feature in features)
        return {"input_ids": ids, "labels": ids}

    trainer(
        tmp_path,
        rows=dataset(weighted_rows()),
        data_collator=collate,
        remove_unused_columns=False,
        max_steps=2,
        per_device_train_batch_size=1,
    ).train()
    assert len(seen) == 2
    assert all(len(set(row)) == 1 for row in seen)


def test_a_batch_in_which_all_weighs_nothing_is_an_error(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "weights": [1.0, 0.0, 0.0]}] * 2
    good = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "weights": [1.0, 2.0, 0.0]}]
    with pytest.raises(DataError, match="no target at all"):
        trainer(tmp_path, rows=dataset(rows + good), max_length=None, **OPTIONS).train()


def test_rows_that_are_not_prepared_may_bring_weights(tmp_path: Path) -> None:
    """Also some of them only; they are checked before anything is trained."""
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "weights": [1.0, 0.5, 2.0]},
        {"input_ids": [8, 9], "labels": [8, 9], "weights": None},
    ]
    skipped = {**OPTIONS, "dataset_kwargs": {"skip_prepare_dataset": True}}
    prepared = trainer(tmp_path, rows=dataset(rows), max_length=None, **OPTIONS)
    as_it_is = trainer(tmp_path, rows=dataset(rows), **skipped)
    for found in (prepared, as_it_is):
        found.train()
    assert losses(as_it_is.state.log_history) == losses(prepared.state.log_history)
    with pytest.raises(DataError, match=r"row 0.*of weights is -2.0"):
        trainer(tmp_path, rows=dataset([{**rows[0], "weights": [1.0, -2.0, 1.0]}]), **skipped)
