"""Three dtypes, kept apart.

Masters in float32, the model in the dtype it arrived in, products in what the device has.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sartor.errors import NonFiniteError
from tests.hf import tiny
from tests.hf.recording import Recorder

BF16 = torch.bfloat16


class Watch(Recorder):
    """Keeps what a parameter looks like while training lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.head: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self.dtypes |= {parameter.dtype for parameter in model.parameters()}
        self.head.append(model.lm_head.weight.detach().clone())


def test_a_bf16_model_is_trained_in_float32_and_comes_back_as_it_arrived(tmp_path: Path) -> None:
    model, watch = tiny.make_model(dtype=BF16), Watch()
    trainer = tiny.trainer(tmp_path, model=model, callbacks=[watch], save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    assert watch.dtypes == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {BF16}
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert {parameter.dtype for parameter in saved.parameters()} == {BF16}
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight)
    assert torch.equal(model.lm_head.weight, watch.head[-1].to(BF16))


def test_updates_that_bf16_would_round_away_are_kept(tmp_path: Path) -> None:
    """At this rate a step moves a weight by 1e-5, less than half of bf16's distance between neighbours around 0.01."""
    watch = Watch()
    model = tiny.make_model(dtype=BF16)
    before = model.lm_head.weight.detach().clone()
    tiny.trainer(
        tmp_path, model=model, callbacks=[watch], learning_rate=1e-5, lr_scheduler_type="constant", max_steps=3
    ).train()
    moved = [float((head != before.float()).float().mean()) for head in watch.head]
    assert moved[0] > 0.5
    assert not torch.equal(watch.head[1], watch.head[2])
    large = before.abs() > 0.05
    assert torch.equal(model.lm_head.weight[large], before[large])  # what the caller sees is rounded


def test_two_trainings_go_on_from_the_masters(tmp_path: Path) -> None:
    """Split in two or not, the masters take the same path, though the model was rounded in between."""
    options: dict[str, Any] = {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "logging_steps": 1}
    rows = tiny.dataset(tiny.texts(2))  # one batch: both halves see the same rows
    whole, halves = Watch(), Watch()
    tiny.trainer(
        tmp_path, model=tiny.make_model(dtype=BF16), rows=rows, callbacks=[whole], max_steps=4, **options
    ).train()
    trainer = tiny.trainer(
        tmp_path, model=tiny.make_model(dtype=BF16), rows=rows, callbacks=[halves], max_steps=2, **options
    )
    trainer.train()
    trainer.train()
    for expected, found in zip(whole.head, halves.head, strict=True):
        assert float((found - expected).abs().max()) < 1e-6  # rows swap places within the batch; rounding is 3e-4


def test_float16_that_is_permitted_on_a_cpu_falls_back_and_says_so(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, fp16=True, max_steps=1)
    trainer.train()
    assert trainer.plan is not None
    assert trainer.plan.compute_dtype == "float32"
    assert "no fp16 instructions" in trainer.plan.reasons["compute_dtype"]


def test_float16_that_is_forced_scales_its_loss_and_skips_what_overflows(tmp_path: Path) -> None:
    plain = tiny.trainer(tmp_path, max_steps=4)
    plain.train()
    trainer = tiny.trainer(tmp_path, fp16=True, strict_precision=True, max_steps=4)
    trainer.train()
    assert trainer.plan is not None
    assert trainer.plan.compute_dtype == "float16"
    expected, found = tiny.losses(plain.state.log_history), tiny.losses(trainer.state.log_history)
    assert found == pytest.approx(expected, abs=2e-2)  # measured: 4e-3
    assert found != expected
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(plain.state.log_history[0]["grad_norm"], rel=1e-2)


def test_bf16_is_used_where_the_processor_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("sartor.device.cpu_has_bf16", lambda has_it=has_it: has_it)
        trainer = tiny.trainer(tmp_path, bf16=True, max_steps=1)
        trainer.train()
        assert trainer.plan is not None
        assert trainer.plan.compute_dtype == expected
        assert trainer.args.bf16 is True


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(tmp_path: Path) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[tiny.VOCABULARY.index("cold")] = float("nan")
    rows = tiny.dataset([{"text": "the moon is old"}, {"text": "the sun is cold today"}])
    trainer = tiny.trainer(
        tmp_path, model=model, rows=rows, per_device_train_batch_size=1, train_sampling_strategy="sequential"
    )
    with pytest.raises(NonFiniteError, match=r"the loss of step 2 is nan: train data, row 1\."):
        trainer.train()
    assert not trainer.is_in_train
    assert trainer.state.global_step == 1


def test_a_batch_without_a_target_stops_and_names_its_rows(tmp_path: Path) -> None:
    from sartor.errors import DataError

    rows = tiny.dataset(
        [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]
    )
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "train_sampling_strategy": "sequential"}
    with pytest.raises(DataError, match=r"no target at all: rows 1 \(from 0\)"):
        tiny.trainer(tmp_path, rows=rows, per_device_train_batch_size=1, **options).train()
    assert tiny.trainer(tmp_path, rows=rows, **options).train().global_step == 3  # together they have some
