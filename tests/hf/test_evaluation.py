"""Evaluation: weighted by tokens, the same for any batch size, with logits only where a metric wants them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.errors import ConfigurationError, OutOfMemoryError
from tests.hf import tiny
from tests.hf.recording import Recorder


def by_hand(model: Any, trainer: Any, rows: Any) -> tuple[float, float]:
    """Loss and accuracy over all targets, one row at a time with the model's own logits."""
    total, correct, count = 0.0, 0, 0
    model.eval()
    for row in trainer.preparation.prepare(rows, "test"):
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(ids[None], use_cache=False).logits[0, :-1]
        kept = labels[1:] != -100
        total += float(torch.nn.functional.cross_entropy(logits[kept], labels[1:][kept], reduction="sum"))
        correct += int((logits[kept].argmax(-1) == labels[1:][kept]).sum())
        count += int(kept.sum())
    return total / count, correct / count


def test_loss_and_accuracy_are_the_means_over_all_targets(tmp_path: Path) -> None:
    rows = tiny.texts(7, start=40)
    trainer = tiny.trainer(tmp_path, eval_dataset=rows)
    loss, accuracy = by_hand(trainer.model, trainer, rows)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(loss, abs=2e-6)
    assert found["eval_mean_token_accuracy"] == pytest.approx(accuracy)
    assert list(found) == [
        "eval_loss",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
        "eval_entropy",
        "eval_mean_token_accuracy",
        "eval_perplexity",
        "eval_num_tokens",
        "epoch",
    ]


def test_the_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    rows = tiny.texts(7, start=40)
    losses = [tiny.trainer(tmp_path, per_device_eval_batch_size=size).evaluate(rows)["eval_loss"] for size in (1, 3, 8)]
    assert max(losses) - min(losses) < 1e-6  # measured: 5e-7; a mean of batches' means moves by 2e-2


@pytest.mark.parametrize("cut", [{"micro_batch_tokens": 8}, {"eval_packing": True, "max_length": 16}])
def test_the_loss_does_not_depend_on_cut_and_packing(cut: dict[str, Any], tmp_path: Path) -> None:
    rows = tiny.texts(7, start=40)
    plain = tiny.trainer(tmp_path).evaluate(rows)["eval_loss"]
    assert tiny.trainer(tmp_path, **cut).evaluate(rows)["eval_loss"] == pytest.approx(plain, abs=1e-6)


def test_evaluation_changes_no_weight_and_leaves_no_gradient_or_mode(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, eval_dataset=tiny.texts(3))
    trainer.model.train()
    with tiny.untouched(trainer.model):
        trainer.evaluate()
    assert trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    trainer.model.eval()
    trainer.evaluate()
    assert not trainer.model.training


def test_several_sets_by_name_and_one_of_them_alone(tmp_path: Path) -> None:
    sets = {"one": tiny.texts(3, start=20), "two": tiny.texts(4, start=40)}
    trainer = tiny.trainer(tmp_path, eval_dataset=sets)
    both = trainer.evaluate()
    alone = trainer.evaluate("two", metric_key_prefix="mine")
    assert both["eval_two_loss"] == pytest.approx(alone["mine_loss"])
    assert both["eval_one_loss"] != pytest.approx(both["eval_two_loss"])
    fresh = trainer.evaluate({"three": sets["two"]})
    assert fresh["eval_three_loss"] == pytest.approx(alone["mine_loss"])


def test_rows_of_any_kind_can_be_evaluated(tmp_path: Path) -> None:
    rows = tiny.texts(3, start=20)
    trainer = tiny.trainer(tmp_path)
    expected = trainer.evaluate(rows)["eval_loss"]
    for given in (tiny.dataset(rows), tiny.stream(rows), trainer.preparation.prepare(rows, "eval")):
        assert trainer.evaluate(given)["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_without_data_evaluate_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pass eval_dataset"):
        tiny.trainer(tmp_path).evaluate()


def test_predict_without_a_metric_keeps_no_logits(tmp_path: Path) -> None:
    rows = tiny.texts(3, start=20)
    trainer = tiny.trainer(tmp_path)
    output = trainer.predict(rows)
    assert output.predictions is None
    assert output.label_ids is None
    assert output.metrics["test_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"])
    assert "test_num_tokens" not in output.metrics


def accuracy_of(given: Any) -> dict[str, float]:
    choices, labels = given.predictions[:, :-1].argmax(-1), given.label_ids[:, 1:]
    kept = labels != -100
    return {"accuracy": float((choices == labels)[kept].mean())}


def test_a_metric_gets_logits_and_labels_and_the_loss_stays_ours(tmp_path: Path) -> None:
    rows = tiny.texts(5, start=20)
    trainer = tiny.trainer(tmp_path, compute_metrics=accuracy_of, eval_dataset=rows)
    found = trainer.evaluate()
    plain = tiny.trainer(tmp_path).evaluate(rows)
    assert found["eval_accuracy"] == pytest.approx(plain["eval_mean_token_accuracy"])
    assert found["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-6)
    assert set(found) == {*plain, "eval_accuracy"}


def test_a_metric_of_packed_rows_sees_each_document_alone(tmp_path: Path) -> None:
    rows = tiny.texts(6, start=20)
    packed = tiny.trainer(tmp_path, compute_metrics=accuracy_of, eval_packing=True, max_length=16).evaluate(rows)
    plain = tiny.trainer(tmp_path).evaluate(rows)
    assert packed["eval_accuracy"] == pytest.approx(plain["eval_mean_token_accuracy"])


def test_logits_can_be_reduced_before_they_are_kept(tmp_path: Path) -> None:
    rows = tiny.texts(5, start=20)
    trainer = tiny.trainer(tmp_path, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1))
    output = trainer.predict(rows)
    assert output.predictions.dtype == np.int64
    assert output.predictions.shape == output.label_ids.shape


def test_rows_with_logits_go_through_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny.texts(5, start=20)
    options: dict[str, Any] = {"compute_metrics": accuracy_of, "per_device_eval_batch_size": 5}
    expected = tiny.trainer(tmp_path, **options).evaluate(rows)
    monkeypatch.setattr("sartor.hf.evaluating.available_bytes", lambda device: 60_000)
    trainer = tiny.trainer(tmp_path, **options)
    sizes: list[int] = []

    class Watch(Recorder):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            sizes.append(1)

    trainer.add_callback(Watch())
    said: list[str] = []
    trainer.say = said.append  # type: ignore[method-assign]
    found = trainer.evaluate(rows)
    assert any("rows at once in place of 5 in evaluations with logits" in line for line in said)
    assert len(sizes) > 1 + 1  # one with logits and one for the loss, were there room
    assert found["eval_accuracy"] == pytest.approx(expected["eval_accuracy"])
    assert found["eval_loss"] == expected["eval_loss"]


def test_a_metric_that_counts_batches_is_not_given_others_and_memory_is_an_error_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    def metric(given: Any, compute_result: bool) -> dict[str, float]:
        raise torch.OutOfMemoryError("injected: out of memory")

    trainer = tiny.trainer(tmp_path, compute_metrics=metric, batch_eval_metrics=True, eval_dataset=tiny.texts(3))
    with pytest.raises(OutOfMemoryError, match="smaller per_device_eval_batch_size"):
        trainer.evaluate()


def test_a_metric_computed_batch_by_batch_knows_the_last_one(tmp_path: Path) -> None:
    seen: list[bool] = []

    def metric(given: Any, compute_result: bool) -> dict[str, float]:
        seen.append(bool(compute_result))
        return {"batches": float(len(seen))}

    trainer = tiny.trainer(tmp_path, compute_metrics=metric, batch_eval_metrics=True, eval_dataset=tiny.texts(5))
    assert trainer.evaluate()["eval_batches"] == 3
    assert seen == [False, False, True]


def test_a_metric_can_choose_the_best_checkpoint(tmp_path: Path) -> None:
    values = iter([0.1, 0.9, 0.5])
    trainer = tiny.trainer(
        tmp_path,
        compute_metrics=lambda given: {"luck": next(values)},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="luck",
        max_steps=3,
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert trainer.state.best_metric == 0.9


@pytest.mark.parametrize("with_metric", [False, True])
def test_full_evaluation_in_bf16_computes_in_it_and_casts_no_weight(
    with_metric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny.texts(3, start=20)
    plain = tiny.trainer(tmp_path).evaluate(rows)["eval_loss"]
    options: dict[str, Any] = {"compute_metrics": accuracy_of} if with_metric else {}
    trainer = tiny.trainer(tmp_path, bf16_full_eval=True, **options)
    seen = []

    class Watch(Recorder):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            assert trainer.engine is not None
            seen.append(trainer.engine.compute_dtype)

    trainer.add_callback(Watch())
    monkeypatch.setattr("sartor.device.cpu_has_bf16", lambda: True)
    found = trainer.evaluate(rows)["eval_loss"]
    assert seen[0] == torch.bfloat16
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert found == pytest.approx(plain, abs=2e-2)
    assert found != plain
    assert trainer.args.bf16_full_eval


def test_an_own_loss_is_what_is_evaluated(tmp_path: Path) -> None:
    def seven(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs.logits.sum() * 0 + 7.0

    found = tiny.trainer(tmp_path, compute_loss_func=seven, eval_dataset=tiny.texts(3)).evaluate()
    assert found["eval_loss"] == 7.0


def test_generate_works_in_a_callback_and_gives_what_it_gives_afterwards(tmp_path: Path) -> None:
    answers = []

    class Ask(Recorder):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            was_training = model.training
            model.eval()
            prompt = torch.tensor([[5, 6, 7]])
            answers.append(model.generate(prompt, max_new_tokens=6, do_sample=False).tolist())
            model.train(was_training)

    trainer = tiny.trainer(tmp_path, callbacks=[Ask()], max_steps=2)
    trainer.train()
    trainer.model.eval()
    after = trainer.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False).tolist()
    assert answers[-1] == after
