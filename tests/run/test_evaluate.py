"""Evaluations of a run: what they measure, when they come, and what keeping logits costs."""

import json
import logging
import math
import resource
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.memory_measure import AllocatorPeak
from transformers import EarlyStoppingCallback, TrainerCallback

from sartor import SFTTrainer
from sartor.errors import ConfigurationError
from sartor.run import sampling
from tests.hf import tiny


def logged(trainer: Any, key: str) -> list[tuple[int, float]]:
    return [(log["step"], log[key]) for log in trainer.state.log_history if key in log]


def test_perplexity_is_the_exponential_of_the_loss(tmp_path: Path) -> None:
    found = tiny.trainer(tmp_path, eval_dataset={"a": tiny.texts(4), "b": tiny.texts(3, start=20)}).evaluate()
    for name in "ab":
        assert found[f"eval_{name}_perplexity"] == pytest.approx(math.exp(found[f"eval_{name}_loss"]))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"eval_strategy": "steps", "eval_steps": 2}, [2, 4, 5]),  # the last step too, as in transformers
        ({"eval_strategy": "steps", "eval_steps": 5, "eval_on_end": True}, [5]),
        ({"eval_strategy": "epoch", "eval_on_start": True, "eval_on_end": True}, [0, 5]),
        ({"eval_on_start": True, "eval_on_end": True}, [0, 5]),
    ],
)
def test_evaluations_come_before_during_and_after_training(
    options: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, eval_dataset=tiny.texts(3), max_steps=5, **options)
    trainer.train()
    assert [step for step, _ in logged(trainer, "eval_loss")] == steps


def test_an_evaluation_at_the_end_can_be_the_best(tmp_path: Path) -> None:
    values = iter([0.1, 0.9])
    trainer = tiny.trainer(
        tmp_path,
        compute_metrics=lambda given: {"luck": next(values)},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        metric_for_best_model="luck",
        eval_on_end=True,
        max_steps=3,
    )
    trainer.train()
    assert trainer.state.best_metric == 0.9
    assert (tmp_path / "checkpoint-3").is_dir()


def test_less_perplexity_is_better_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    sets = {"near": tiny.texts(3), "loss": tiny.texts(3, start=40)}
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "max_steps": 3}
    found = {}
    for metric in ("near_perplexity", "eval_loss_perplexity", "near_loss"):
        trainer = tiny.trainer(
            tmp_path / metric, eval_dataset=sets, metric_for_best_model=metric, load_best_model_at_end=True, **options
        )
        trainer.train()
        values = dict(logged(trainer, f"eval_{metric.removeprefix('eval_')}"))
        assert trainer.state.best_metric == min(values.values())
        found[metric] = trainer.state.best_global_step
    assert found["near_perplexity"] == found["near_loss"]
    assert tiny.config(tmp_path, metric_for_best_model="perplexity", greater_is_better=True).greater_is_better
    assert tiny.config(tmp_path, metric_for_best_model="mean_token_accuracy").greater_is_better


def test_eval_on_end_without_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="eval_on_end=True needs eval_dataset"):
        tiny.trainer(tmp_path, eval_on_end=True)


def test_transformers_early_stopping_stops(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path,
        compute_metrics=lambda given: {"flat": 1.0},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="flat",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        max_steps=9,
    )
    trainer.train()
    assert trainer.state.global_step == 3


def choices(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


@pytest.mark.parametrize("reduces", [False, True])
def test_what_logits_cost_is_said_once(reduces: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"preprocess_logits_for_metrics": choices} if reduces else {}
    metric = lambda given: {"mean": float(np.asarray(given.predictions).mean())}  # noqa: E731
    trainer = tiny.trainer(tmp_path, compute_metrics=metric, eval_dataset=tiny.texts(5), **options)
    with caplog.at_level(logging.INFO, logger="sartor"):
        trainer.evaluate()
        trainer.evaluate()
    said = [record.message for record in caplog.records if "need logits" in record.message]
    assert len(said) == 1
    assert ("preprocess_logits_for_metrics leaves" in said[0]) is reduces
    assert ("for the 5 rows" in said[0]) is not reduces


def test_logits_of_a_stream_cost_something_too_and_a_metric_that_is_not_called_is_told(tmp_path: Path) -> None:
    metric = lambda given: {"rows": float(len(given.predictions))}  # noqa: E731
    told: dict[bool, list[str]] = {True: [], False: []}
    for loss_only, said in told.items():
        rows = tiny.stream(tiny.texts(5))
        trainer = tiny.trainer(tmp_path, compute_metrics=metric, eval_dataset=rows, prediction_loss_only=loss_only)
        trainer.say = said.append
        assert ("eval_rows" in trainer.evaluate()) is not loss_only
    assert sum("need logits: up to 0.0 MB for a batch, and those of all rows of the stream" in x for x in told[False])
    assert sum("compute_metrics is not called" in line for line in told[True]) == 1


def test_what_a_metric_may_get_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="include_for_metrics: labels is unknown: choose from inputs and loss"):
        tiny.config(tmp_path, include_for_metrics=["inputs", "labels"])


def test_logits_that_do_not_fit_are_made_of_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def reduce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        if len(logits) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return logits.argmax(-1)

    trainer = tiny.trainer(
        tmp_path,
        compute_metrics=lambda given: {"rows": float(len(given.predictions))},
        preprocess_logits_for_metrics=reduce,
        eval_dataset=tiny.texts(5),
        per_device_eval_batch_size=4,
    )
    assert trainer.evaluate()["eval_rows"] == 5
    assert seen == [4, 4, 2, 1, 1, 1, 1, 1]


class _Counts(TrainerCallback):
    """The most that a step's forward and backward passes take, by torch's allocator."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.peak = AllocatorPeak().__enter__()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.peak.__exit__(None, None, None)
        self.num_bytes = max(self.num_bytes, self.peak.num_bytes)


class _CountsEvaluations(SFTTrainer):
    num_bytes = 0

    def evaluate(self, *args: Any, **named: Any) -> Any:
        with AllocatorPeak() as peak:
            metrics = super().evaluate(*args, **named)
        self.num_bytes = max(self.num_bytes, peak.num_bytes)
        return metrics


@pytest.mark.parametrize("cut", [{}, {"micro_batch_tokens": 1024}, {"packing": True}])
@pytest.mark.parametrize("batch_size", [1, 40])
def test_no_evaluation_of_a_run_takes_more_memory_than_its_steps(
    cut: dict[str, Any], batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by torch's allocator, whatever the evaluation's batches are, and however small training's are."""
    monkeypatch.setattr("sartor.run.planning.TINY_BYTES", 0)  # else too small to be foreseen
    rows = [{"input_ids": [(3 * place + row) % 80 + 5 for place in range(40)]} for row in range(40)]
    steps = _Counts()
    trainer = tiny.trainer(
        tmp_path,
        kind=_CountsEvaluations,
        model=tiny.make_model(hidden_size=64, intermediate_size=128, num_hidden_layers=3),
        rows=tiny.dataset(rows[:8]),
        eval_dataset={"near": tiny.dataset(rows), "far": tiny.dataset(rows[:3])},
        per_device_train_batch_size=2,
        per_device_eval_batch_size=batch_size,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
        callbacks=[steps],
        **cut,
    )
    trainer.train()
    assert 0 < trainer.num_bytes < steps.num_bytes


# --- sample answers --------------------------------------------------------------------------------------------------

PROMPTS = ["moon is", "why | not"]


def answered(trainer: Any) -> list[tuple[int, str]]:
    return [(sample.step, sample.prompt) for sample in trainer.sample_answers.samples]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"sample_steps": 2}, [0, 2, 4, 5]),
        ({"eval_strategy": "steps", "eval_steps": 3}, [0, 3, 5]),
        ({}, [0, 5]),
    ],
)
def test_prompts_are_asked_before_during_and_after_training(
    options: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    trainer = tiny.trainer(
        tmp_path, eval_dataset=tiny.texts(2), sample_prompts=PROMPTS, sample_max_new_tokens=3, max_steps=5, **options
    )
    told: list[str] = []
    trainer.say = told.append
    trainer.train()
    assert answered(trainer) == [(step, prompt) for step in steps for prompt in PROMPTS]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == answered(trainer)
    page = (tmp_path / "samples.md").read_text()
    assert page.count("| step | answer |") == 2
    assert "why \\| not" in page
    assert f"step {steps[-1]}: " in sampling.first_and_last(trainer.sample_answers.samples)
    shown = [line for line in told if line.startswith("answers to sample_prompts")]
    assert len(shown) == 1
    assert sampling.first_and_last(trainer.sample_answers.samples) in shown[0]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_asking_changes_neither_weights_nor_random_numbers(dropout: float, tmp_path: Path) -> None:
    def trained(folder: str, **options: Any) -> dict[str, torch.Tensor]:
        model = tiny.make_model(attention_dropout=dropout)
        trainer = tiny.trainer(tmp_path / folder, model=model, max_steps=4, neftune_noise_alpha=5, **options)
        trainer.train()
        return tiny.weights(trainer.model)

    plain = trained("plain")
    asked = trained("asked", sample_prompts=PROMPTS, sample_steps=1, sample_max_new_tokens=3)
    for name, weight in plain.items():
        assert torch.equal(weight, asked[name]), name


def test_the_last_answer_is_what_the_trained_model_gives(tmp_path: Path) -> None:
    from sartor.chat.options import SamplingOptions
    from sartor.chat.sample import Speaker

    trainer = tiny.trainer(tmp_path, sample_prompts=PROMPTS, sample_max_new_tokens=5, max_steps=3)
    trainer.train()
    trainer.model.eval()
    speaker = Speaker(trainer.model, trainer.processing_class)
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    expected = speaker.answers(asked, SamplingOptions(greedy=True, max_new_tokens=5))
    assert [sample.answer for sample in trainer.sample_answers.samples[-2:]] == expected


class _StopsAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            raise ZeroDivisionError


def asking(folder: Path, **options: Any) -> Any:
    saving = {"save_strategy": "steps", "save_steps": 2, "sample_steps": 3, "max_steps": 7}
    return tiny.trainer(folder, sample_prompts=PROMPTS, sample_max_new_tokens=3, **saving, **options)


def test_a_resumed_run_goes_on_with_its_table_also_in_another_folder(tmp_path: Path) -> None:
    asking(tmp_path / "whole").train()
    expected = [(tmp_path / "whole" / name).read_text() for name in ("samples.jsonl", "samples.md")]
    for other in (False, True):
        with pytest.raises(ZeroDivisionError):
            asking(tmp_path / "stopped", callbacks=[_StopsAt(6)]).train()  # answers of step 6 are there, step 6 is not
        folder = tmp_path / ("other" if other else "stopped")
        asking(folder).train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
        assert [(folder / name).read_text() for name in ("samples.jsonl", "samples.md")] == expected


@pytest.mark.parametrize("content", ['{"step": 0, "prom\n', "[1]\n", '{"step": 1}\n'])
def test_a_table_that_cannot_be_read_does_not_end_a_resumed_run(content: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        asking(tmp_path, callbacks=[_StopsAt(5)]).train()
    (tmp_path / "samples.jsonl").write_text(content)
    trainer = asking(tmp_path)
    told: list[str] = []
    trainer.say = told.append
    trainer.train(resume_from_checkpoint=True)
    assert any("without its earlier sample answers" in line for line in told)
    assert [step for step, _ in answered(trainer)] == [6, 6, 7, 7]


class _Watches(TrainerCallback):
    """Keeps the content of samples.jsonl, and which file it is, after every step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "samples.jsonl"
        self.seen: list[tuple[int, bytes]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.seen.append((self.path.stat().st_ino, self.path.read_bytes()))


def test_answers_are_appended_to_the_file_that_is_there(tmp_path: Path) -> None:
    watches = _Watches(tmp_path)
    asking(tmp_path, callbacks=[watches]).train()
    assert len({file for file, _ in watches.seen}) == 1
    contents = [content for _, content in watches.seen]
    assert all(after.startswith(before) for before, after in pairwise(contents))
    assert contents[-1] != contents[0]
    assert (tmp_path / "samples.jsonl").stat().st_ino == watches.seen[0][0]


@pytest.mark.parametrize("left", ["half a line", "one answer of two"])
def test_what_a_crash_left_of_the_last_answers_is_asked_anew(left: str, tmp_path: Path) -> None:
    """Of step 7, the last one: they were being written when the program was killed."""
    asking(tmp_path).train()
    path = tmp_path / "samples.jsonl"
    expected = path.read_text()
    *earlier, one, other = expected.splitlines(keepends=True)
    assert '"step": 7' in one
    path.write_text("".join([*earlier, one, other[:9] if left == "half a line" else ""]))
    asking(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert path.read_text() == expected


def test_a_link_in_place_of_the_table_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        asking(tmp_path / "run", callbacks=[_StopsAt(5)]).train()
    path, elsewhere = tmp_path / "run" / "samples.jsonl", tmp_path / "elsewhere.jsonl"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    content = elsewhere.read_bytes()
    asking(tmp_path / "run").train(resume_from_checkpoint=True)
    assert elsewhere.read_bytes() == content
    assert not path.is_symlink()


def test_answers_for_which_the_disk_had_no_room_are_written_with_the_next_ones(tmp_path: Path) -> None:
    """The file takes no more bytes for the step in the middle; before and after, all lines in it are whole."""
    options = {"sample_steps": 3, "max_steps": 7, "save_strategy": "no", "logging_strategy": "no"}
    asks = {"sample_prompts": PROMPTS, "sample_max_new_tokens": 3}
    whole = tmp_path / "whole"
    tiny.trainer(whole, **asks, **options).train()
    path = tmp_path / "run" / "samples.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))

            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    told: list[str] = []
    trainer = tiny.trainer(tmp_path / "run", callbacks=[Full()], **asks, **options)
    trainer.say = told.append
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert any("sample answers could not be written" in line and str(path) in line for line in told)
    assert path.read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_question_that_never_fits_leaves_a_hole_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **named: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("sartor.chat.sample.Speaker.generate", refuse)
    trainer = tiny.trainer(tmp_path, sample_prompts=PROMPTS, max_steps=2)
    assert trainer.train().global_step == 2
    assert {sample.answer for sample in trainer.sample_answers.samples} == {sampling.NO_ANSWER}


def test_sample_prompts_must_be_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sample_prompts='hello' must be a list of texts"):
        tiny.config(tmp_path, sample_prompts="hello")


def test_answers_come_back_whatever_is_in_them(tmp_path: Path) -> None:
    samples = [sampling.Sample(0, "why?", "a\u2028b\x85c\nd | e"), sampling.Sample(1, "why?", "")]
    sampling.append(tmp_path, samples)
    assert sampling.keep(tmp_path, 1) == samples
