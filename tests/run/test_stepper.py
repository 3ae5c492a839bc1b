"""Steps on the engine: targets counted once, updates, loss scale, schedule."""

from typing import Any

import pytest
import torch

from sartor.batching.cut import make_micro_batch
from sartor.engine.layout import choose_layout
from sartor.engine.step import Engine
from sartor.engine.traits import read_traits
from sartor.errors import DataError, NonFiniteError
from sartor.memory.plan import default_plan
from sartor.records import EngineSettings, Example
from sartor.run.evaluate import evaluate
from sartor.run.loop import OptimizerBatch
from sartor.run.stepper import EngineStepper, Updater, not_finite, rows_by_number
from tests.hf import tiny


def engine_of(model: Any, *, tokens: int = 2048, compute_dtype: str = "float32", **settings: Any) -> Engine:
    traits = read_traits(model)
    engine_settings = EngineSettings(micro_batch_tokens=tokens, **settings)
    plan = default_plan(
        traits,
        engine_settings,
        choose_layout(model, traits),
        device=torch.device("cpu"),
        parameter_dtype="float32",
        compute_dtype=compute_dtype,
        compute_reason="",
        longest_tokens=16,
        available_bytes=1 << 33,
        num_threads=1,
    )
    return Engine(model, traits, plan, engine_settings)


def stepper_of(engine: Engine, *, rate: float = 0.1, max_grad_norm: float = 0.0) -> tuple[EngineStepper, Updater]:
    optimizer = torch.optim.SGD(engine.model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    updater = Updater(optimizer, scheduler, engine, max_grad_norm, steps_on_metrics=False)
    return EngineStepper(engine, updater), updater


def batch_of(*documents: list[int], sizes: tuple[int, ...] = ()) -> OptimizerBatch:
    examples = tuple(Example(ids, ids) for ids in documents)
    return OptimizerBatch(examples, tuple(range(len(examples))), sizes or (len(examples),))


@pytest.mark.parametrize(
    ("labels", "documents", "expected"),
    [
        ([5, 6, 7], (), 2),  # nothing predicts the first
        ([-100, 6, -100, 8], (), 2),
        ([5, 6, 7, 8, 9], (2, 3), 3),  # nor the first of the second document
        ([-100, 6, -100, 8, 9], (2, 3), 3),
        ([-100, -100], (), 0),
        ([], (), 0),
    ],
)
def test_targets_are_labels_that_something_predicts(
    labels: list[int], documents: tuple[int, ...], expected: int
) -> None:
    example = Example(list(range(len(labels))), labels, documents)
    assert example.num_targets == expected
    if labels:
        assert make_micro_batch([example], [0]).num_targets == expected


def test_the_gradient_is_the_mean_over_the_whole_batch_for_every_cut() -> None:
    batch = batch_of([5, 6, 7, 8], [9, 10], [11, 12, 13])
    found = []
    for tokens in (2048, 4, 1):
        engine = engine_of(tiny.make_model(), tokens=tokens)
        with engine.running():
            result = stepper_of(engine)[0].gradients(batch)
        found.append({name: p.grad.clone() for name, p in engine.model.named_parameters()})
        assert (result.num_tokens, result.sums.num_targets) == (9, 6)
    model = tiny.make_model()
    total = sum(
        model(torch.tensor([list(e.input_ids)]), labels=torch.tensor([list(e.labels)]), use_cache=False).loss
        * (len(e.input_ids) - 1)
        for e in batch.examples
    )
    (total / 6).backward()
    for gradients in found:
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_a_step_clips_updates_schedules_and_clears() -> None:
    engine = engine_of(tiny.make_model())
    stepper, updater = stepper_of(engine, rate=0.5, max_grad_norm=0.1)
    before = tiny.weights(engine.model)
    with engine.running():
        result = stepper.clip(stepper.gradients(batch_of([5, 6, 7])))
        clipped = torch.stack([p.grad.norm() for p in engine.model.parameters()]).norm()
        stepper.update()
    assert result.grad_norm is not None
    assert result.grad_norm > 0.1
    assert float(clipped) == pytest.approx(0.1, rel=1e-4)
    assert stepper.schedule() == 0.5  # the rate that was used
    assert updater.optimizer.param_groups[0]["lr"] == 0.25
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert any((before[name] != p).any() for name, p in engine.model.named_parameters())
    assert updater.steps.done == 1


def test_a_float16_step_that_overflows_is_skipped_and_the_scale_lowered() -> None:
    engine = engine_of(tiny.make_model(), compute_dtype="float16")
    stepper, updater = stepper_of(engine)
    before = tiny.weights(engine.model)
    with engine.running():
        scale = updater.loss_scale
        result = stepper.gradients(batch_of([5, 6, 7]))
        next(engine.model.parameters()).grad[0, 0] = float("inf")
        result = stepper.clip(result)
        stepper.update()
        assert stepper.schedule() == 0.1
    assert updater.loss_scale == scale / 2
    assert result.grad_norm == float("inf")
    assert updater.optimizer.param_groups[0]["lr"] == 0.1  # the schedule waits
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_errors_name_rows_and_step() -> None:
    engine = engine_of(tiny.make_model())
    nothing = OptimizerBatch((Example([5, 6], [-100, -100]),) * 2, (3, 9), (2,))
    with engine.running(), pytest.raises(DataError, match=r"rows 3, 9 \(from 0\)"):
        stepper_of(engine)[0].gradients(nothing)
    assert "rows 0, 1" in rows_by_number(range(40))
    assert "and 24 more" in rows_by_number(range(40))
    assert "the loss of step 4 is nan: rows 3" in str(not_finite(4, "the loss", float("nan"), "rows 3"))
    assert isinstance(not_finite(4, "the loss", float("nan"), "row 1"), NonFiniteError)


def test_evaluation_adds_up_over_batches_of_any_size() -> None:
    documents = [Example([5, 6, 7, 8], [5, 6, 7, 8]), Example([9, 10], [9, 10]), Example([11, 12, 13], [-100, 12, 13])]
    found = []
    for tokens, batches in (
        (2048, [documents]),
        (4, [[one] for one in documents]),
        (1, [documents[:1], documents[1:]]),
    ):
        engine = engine_of(tiny.make_model(), tokens=tokens)
        heard = []
        with engine.running():
            result = evaluate(engine, batches, name="eval data", on_batch=lambda heard=heard: heard.append(1))
        assert len(heard) == len(batches)
        assert (result.num_examples, result.num_tokens, result.sums.num_targets) == (3, 9, 6)
        found.append(result.loss)
    assert max(found) - min(found) < 1e-6
    assert result.perplexity == pytest.approx(torch.tensor(result.loss).exp().item(), rel=1e-5)


def test_evaluation_without_a_target_is_an_error_that_names_the_data() -> None:
    engine = engine_of(tiny.make_model())
    with engine.running(), pytest.raises(DataError, match="eval data: no row has a target"):
        evaluate(engine, [[Example([5, 6], [-100, -100])]], name="eval data")
