"""Losses and gradients that are not finite, and losses that stand out: told with their rows, by file and line."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.data.reading import sources
from sartor.engine.step import Engine
from sartor.errors import NonFiniteError
from sartor.run.spikes import LEAST, Spikes
from tests.hf import tiny


def poisoned(monkeypatch: pytest.MonkeyPatch, *, first_token: int, gradient: bool) -> None:
    """Make the loss, or the gradient alone, of documents that begin with this token NaN."""
    real = Engine.backward

    def backward(self: Engine, micro: Any, **named: Any) -> Any:
        sums = real(self, micro, **named)
        starts = [sum(micro.document_lengths[:n]) for n in range(len(micro.document_lengths))]
        if first_token in micro.input_ids_T[starts].tolist():
            if gradient:
                next(self.model.parameters()).grad[0, 0] = math.nan
            else:
                sums = type(sums)(**{**_fields(sums), "loss_sum": sums.loss_sum * math.nan})
        return sums

    monkeypatch.setattr(Engine, "backward", backward)


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


ROWS = [{"text": "moon is w1 w2"}, {"text": "sun is w3"}, {"text": "star of w4 w5"}, {"text": "green and w6"}]


def trainer_of(folder: Path, **options: Any) -> Any:
    """One row at a time, in the file's order; the third row, line 3, is the poisoned one."""
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    defaults = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "num_train_epochs": 2}
    return tiny.trainer(folder / "run", rows=str(path), **{**defaults, **options})


def star() -> int:
    return int(tiny.make_tokenizer()("star")["input_ids"][0])


@pytest.mark.parametrize("gradient", [False, True])
def test_a_run_stops_with_step_line_and_last_checkpoint(
    gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, first_token=star(), gradient=gradient)
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    text = str(caught.value)
    assert "of step 3 is nan" in text
    assert "rows.jsonl, line 3" in text
    assert "checkpoint-2: every loss before it was finite" in text
    assert ("gradient" in text) is gradient


def test_a_checkpoint_of_an_earlier_run_in_the_folder_is_not_called_this_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 8}
    trainer_of(tmp_path, **saving).train()
    assert (tmp_path / "run" / "checkpoint-8").is_dir()
    poisoned(monkeypatch, first_token=star(), gradient=False)
    again = trainer_of(tmp_path, **saving)
    told: list[str] = []
    again.say = told.append
    with pytest.raises(NonFiniteError, match="No checkpoint was saved before it"):
        again.train()
    assert any("holds checkpoint-8 of an earlier run: this one begins anew" in line for line in told)


def test_the_checkpoint_that_a_run_went_on_from_is_its_last_good_one_also_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 6, "max_steps": 8, "dataloader_drop_last": False}
    trainer_of(tmp_path, **saving).train()
    shutil.move(tmp_path / "run", tmp_path / "before")
    poisoned(monkeypatch, first_token=star(), gradient=False)
    with pytest.raises(NonFiniteError, match=r"of step 7 .*before/checkpoint-6: every loss"):
        trainer_of(tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "before" / "checkpoint-6"))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_skipped_batch_changes_nothing_and_is_counted(
    gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trainer_of(tmp_path / "without", max_steps=2, lr_scheduler_type="constant")
    expected.train()
    poisoned(monkeypatch, first_token=star(), gradient=gradient)
    trainer = trainer_of(tmp_path / "with", max_steps=3, lr_scheduler_type="constant", on_non_finite="skip")
    with caplog.at_level(logging.INFO, logger="sartor"):
        output = trainer.train()
    assert output.global_step == 3
    assert output.metrics["skipped_batches"] == 1
    assert trainer.lr_scheduler.last_epoch == 2  # the schedule waits
    assert output.metrics["train_loss"] == pytest.approx(expected.state.log_history[-1]["train_loss"])
    for name, weight in tiny.weights(trainer.model).items():
        assert torch.equal(weight, expected.model.get_parameter(name)), name
    assert any("step 3 is skipped" in text and "Skipped so far: 1" in text for text in caplog.messages)
    assert math.isnan(tiny.losses(trainer.state.log_history)[-1])


def test_a_loss_stands_out_above_twice_the_mean_and_six_deviations() -> None:
    spikes = Spikes()
    assert all(spikes.add(1.0) is None for _ in range(LEAST - 1))
    assert spikes.add(50.0) is None  # too early to tell
    spikes = Spikes()
    for _ in range(LEAST):
        spikes.add(1.0)
    assert spikes.add(1.9) is None
    assert spikes.add(math.inf) == pytest.approx(1.043, abs=1e-3)
    assert spikes.add(9.0) is not None  # one does not hide the next
    assert spikes.count == 2
    other = Spikes()
    other.load_state(**spikes.state())
    assert other.add(9.0) == spikes.add(9.0)
    for loss, is_spike in ((4.4, False), (4.6, True)):
        noisy = Spikes()
        for number in range(LEAST):
            noisy.add(1.0 + number % 2)  # mean 1.5, deviation 0.5
        assert (noisy.add(loss) is not None) is is_spike


def test_a_spike_is_told_with_its_rows_and_acted_on_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sartor.run.spikes.LEAST", 2)
    monkeypatch.setattr("sartor.run.spikes.TIMES", 0.0)
    monkeypatch.setattr("sartor.run.spikes.SIGMAS", -100.0)
    trainer = trainer_of(tmp_path, max_steps=3)
    with caplog.at_level(logging.INFO, logger="sartor"):
        output = trainer.train()
    told = [text for text in caplog.messages if "step 3: a loss of" in text]
    assert len(told) == 1
    assert "rows.jsonl, line 3" in told[0]
    assert output.metrics["loss_spikes"] == 1


@pytest.mark.parametrize("streams", [False, True])
def test_a_poisoned_row_among_rows_that_are_known_by_heart_is_told_by_its_line(streams: bool, tmp_path: Path) -> None:
    """By the rule as it is; of a stream too, whose lines are known while they are read."""
    rows = [{"text": "w1 w2 w3 w4 w5"}] * 80
    rows[70] = {"text": "sun w50 moon w33 w59 star"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "max_steps": 75}
    data = sources.load(path).to_iterable_dataset() if streams else str(path)
    trainer = tiny.trainer(tmp_path / "run", rows=data, learning_rate=3e-2, **options)
    told: list[str] = []
    trainer.say = told.append
    assert trainer.train().metrics["loss_spikes"] == 1
    assert [line.partition(":")[0] for line in told if "a loss of" in line] == ["step 71"]
    assert any(line.endswith("rows.jsonl, line 71") for line in told)


@pytest.mark.parametrize("streams", [False, True])
def test_each_row_of_a_packed_block_is_named(streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, first_token=star(), gradient=False)
    (tmp_path / "run").mkdir()
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "moon is w1"}) + "\n" for _ in range(4)) + '{"text": "star of w4 w5"}\n'
    )
    data = sources.load(path).to_iterable_dataset() if streams else str(path)
    packed = {"packing": True, "max_length": 9, "max_steps": 3}  # 5 + 4 tokens, 4 + 4, 4
    trainer = tiny.trainer(
        tmp_path / "run", rows=data, per_device_train_batch_size=1, train_sampling_strategy="sequential", **packed
    )
    with pytest.raises(
        NonFiniteError, match=r"of step 1 is nan: rows\.jsonl, lines? [15](, |; rows\.jsonl, line )[15]\. Look"
    ):
        trainer.train()
