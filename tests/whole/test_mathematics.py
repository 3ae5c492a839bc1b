"""A whole training equals a plain loop in float64 that takes one row at a time.

The loop knows nothing of flat rows, micro-batches or chunks.  Everything that must be right for the two to be equal is
in here: order, last batches, targets, isolation, weighting by tokens, clipping, schedule, update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sartor.errors import NonFiniteError
from tests.hf.tiny import make_model, make_tokenizer, trainer, weights

VOCABULARY = 88
BATCH, ACCUMULATION, EPOCHS, SEED = 2, 2, 2, 42
LEARNING_RATE = 0.5
ROWS = 11
"""6 device batches, the last of one row; 3 optimizer batches of 4, 4 and 3 rows."""

# Measured: losses 2e-7, norms 2e-6, weights 4e-7 (relative).
LOSS_TOLERANCE, TOLERANCE = 1e-6, 1e-5


@dataclass
class Expected:
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)


pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> list[dict[str, list[int]]]:
    """Rows of 3 to 15 tokens, of very different numbers of targets: the last third of each, and in one all."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(ROWS):
        length = 3 + (number * 5) % 13
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        first = 0 if number == 4 else length - 1 - length // 3
        made.append({"input_ids": ids, "labels": [-100] * first + ids[first:]})
    return made


def plain_training(model: Any, *, max_grad_norm: float = 0.0, label_smoothing: float = 0.0) -> Expected:
    """Stochastic gradient descent on `model`, in place, with a rate that falls linearly to zero."""
    model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    expected, data = Expected(), rows()
    size, step, num_tokens = BATCH * ACCUMULATION, 0, 0
    num_steps = EPOCHS * -(-ROWS // size)
    for epoch in range(EPOCHS):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(SEED + epoch)).tolist()
        for start in range(0, ROWS, size):
            batch = [data[number] for number in order[start : start + size]]
            optimizer.zero_grad()
            losses, num_targets = [], 0
            for row in batch:
                ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
                logits = model(input_ids=ids, use_cache=False).logits[0]
                losses.append(
                    F.cross_entropy(logits[:-1], labels[1:], reduction="sum", label_smoothing=label_smoothing)
                )
                num_targets += int((labels[1:] != -100).sum())
            loss = torch.stack(losses).sum() / num_targets
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
            rate = LEARNING_RATE * (1 - step / num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            step += 1
            num_tokens += sum(len(row["input_ids"]) for row in batch)
            expected.losses.append(loss.item())
            expected.norms.append(norm.item())
            expected.rates.append(rate)
            expected.num_tokens.append(num_tokens)
    return expected


def made(**changes: Any) -> Any:
    """A model of two layers; `window`: each token sees that many."""
    window = changes.pop("window", None)
    if window is None:
        return make_model(num_hidden_layers=2, **changes)
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=1,
        sliding_window=window,
        initializer_range=0.2,
        eos_token_id=0,
        **sizes,
    )
    return MistralForCausalLM(config)


def relative(found: list[float], expected: list[float]) -> float:
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "plain", "model"),
    [
        ({}, {}, {}),
        ({"micro_batch_tokens": 16}, {}, {}),
        ({"micro_batch_tokens": 1, "gradient_checkpointing": True}, {}, {"tied": True}),
        ({"micro_batch_tokens": 24, "max_grad_norm": 0.3}, {"max_grad_norm": 0.3}, {}),
        ({"label_smoothing_factor": 0.2}, {"label_smoothing": 0.2}, {"tied": True}),
        ({"micro_batch_tokens": 20}, {}, {"window": 4}),
    ],
    ids=["whole", "cut", "one row at a time, recomputed", "clipped", "smoothed", "windowed"],
)
def test_a_training_equals_a_plain_loop_in_float64(
    options: dict[str, Any], plain: dict[str, float], model: dict[str, Any], tmp_path: Path
) -> None:
    expected_model = made(**model)
    expected = plain_training(expected_model, **plain)
    from datasets import Dataset

    found = trainer(
        tmp_path,
        model=made(**model),
        rows=Dataset.from_list(rows()),
        **{
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "num_train_epochs": EPOCHS,
            "learning_rate": LEARNING_RATE,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "seed": SEED,
            **options,
        },
    )
    found.train()
    log = [record for record in found.state.log_history if "loss" in record]
    assert [record["num_tokens"] for record in log] == expected.num_tokens
    assert [record["learning_rate"] for record in log] == pytest.approx(expected.rates, rel=1e-12)
    assert relative([record["loss"] for record in log], expected.losses) < LOSS_TOLERANCE
    assert relative([record["grad_norm"] for record in log], expected.norms) < TOLERANCE
    trained, untrained = weights(expected_model), weights(made(**model))
    for name, weight in weights(found.model).items():
        moved = (trained[name] - untrained[name].double()).norm()
        rounding = 1e-7 * trained[name].norm()  # of float32 weights near 1 that move by hundredths
        assert (weight.double() - trained[name]).norm() < TOLERANCE * moved + rounding, name
    assert max(expected.losses) - min(expected.losses) > 0.05  # it did train


def test_float16_with_loss_scaling_measures_the_same_norms(tmp_path: Path) -> None:
    """The scale of the loss is undone before a norm is measured or clipped.  Measured: 2e-3; a scale is 65536."""
    norms = []
    for precision in ({}, {"fp16": True, "strict_precision": True}):
        found = trainer(tmp_path / str(len(norms)), max_steps=3, learning_rate=1e-3, optim="sgd", **precision)
        found.train()
        norms.append([record["grad_norm"] for record in found.state.log_history if "loss" in record])
    assert relative(*norms) < 2e-2


def test_noise_is_drawn_anew_in_every_step(tmp_path: Path) -> None:
    """At a learning rate of nothing, only the noise of NEFTune can change the loss of the same rows."""
    found = trainer(tmp_path, rows=[{"text": "w1 w2 w3 w4"}], max_steps=3, learning_rate=0.0, neftune_noise_alpha=5.0)
    found.train()
    losses = [record["loss"] for record in found.state.log_history if "loss" in record]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_are_handed_back_and_saved_in_the_dtype_they_arrived_in(dtype: torch.dtype, tmp_path: Path) -> None:
    """In between they have masters in float32, also while a checkpoint is written."""
    from safetensors.torch import load_file

    model = make_model(dtype=dtype)
    before = weights(model)
    found = trainer(
        tmp_path,
        model=model,
        max_steps=2,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
        processing_class=make_tokenizer(),
    )
    found.train()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert found.plan is not None
    assert found.plan.parameter_dtype == "float32"
    assert any(not torch.equal(before[name], weight) for name, weight in weights(model).items())
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert sorted(path.name for path in folders) == ["checkpoint-1", "checkpoint-2"]
    for folder in folders:
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {dtype}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows(tmp_path: Path) -> None:
    model = make_model()
    found = trainer(tmp_path, model=model, max_steps=5, learning_rate=1e30, max_grad_norm=0.0, optim="sgd")
    rows = r"train data, row \d+; train data, row \d+"
    with pytest.raises(NonFiniteError, match=rf"the loss of step [23] is (nan|inf): {rows}"):
        found.train()
    assert len([record for record in found.state.log_history if "loss" in record]) in (1, 2)
