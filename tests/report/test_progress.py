"""Progress: a bar on a terminal, one line per log elsewhere, and nothing left behind."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sartor.report import progress
from sartor.report.progress import TrainingProgress, describe, duration


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls a callback's events with a clock that only moves when told."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(progress, "peak_bytes", lambda: 2_500_000_000)
    args, control = TrainingArguments(output_dir="unused", use_cpu=True), TrainerControl()

    def call(callback: TrainingProgress, event: str, step: int, seconds: float = 0.0, **more: Any) -> None:
        clock.now += seconds
        getattr(callback, event)(args, TrainerState(global_step=step, max_steps=10), control, **more)

    return call


def test_without_a_terminal_each_log_is_one_plain_line(events: Any) -> None:
    stream = io.StringIO()
    callback = TrainingProgress(stream)
    events(callback, "on_train_begin", 0)
    for step in (1, 2):
        events(callback, "on_step_begin", step - 1)
        events(callback, "on_step_end", step, seconds=5.0)
        events(callback, "on_log", step, logs={"loss": 2.0 / step, "num_tokens": 1000.0 * step, "epoch": 0.1 * step})
    events(callback, "on_log", 2, logs={"eval_loss": 1.5, "eval_mean_token_accuracy": 0.25, "epoch": 0.2})
    events(callback, "on_log", 10, logs={"train_runtime": 1.0, "train_loss": 1.0})
    events(callback, "on_train_end", 10)
    assert stream.getvalue().splitlines() == [
        "step 1/10  epoch 0.10  loss 2.0000  200 tokens/s  2.5 GB  0:45 left",
        "step 2/10  epoch 0.20  loss 1.0000  200 tokens/s  2.5 GB  0:40 left",
        "step 2/10  epoch 0.20  evaluation loss 1.5000  accuracy 25.0%",
    ]


def test_time_between_steps_does_not_slow_the_rate(events: Any) -> None:
    stream = io.StringIO()
    callback = TrainingProgress(stream)
    events(callback, "on_train_begin", 0)
    events(callback, "on_step_begin", 0, seconds=90.0)
    events(callback, "on_step_end", 1, seconds=10.0)
    events(callback, "on_log", 1, logs={"loss": 1.0, "num_tokens": 1000.0})
    assert "100 tokens/s" in stream.getvalue()


def test_tokens_of_before_a_run_was_resumed_are_not_counted_as_its_first_ones(events: Any) -> None:
    stream = io.StringIO()
    callback = TrainingProgress(stream)
    events(callback, "on_train_begin", 5)
    for step in (6, 7):
        events(callback, "on_step_begin", step - 1)
        events(callback, "on_step_end", step, seconds=5.0)
        events(callback, "on_log", step, logs={"loss": 1.0, "num_tokens": 1000.0 * step})
    first, second = stream.getvalue().splitlines()
    assert "tokens/s" not in first
    assert "200 tokens/s" in second


def test_what_the_trainer_measured_wins(events: Any) -> None:
    stream = io.StringIO()
    callback = TrainingProgress(stream)
    events(callback, "on_train_begin", 0)
    events(callback, "on_log", 1, logs={"loss": 1.0, "tokens_per_second": 77.0, "peak_memory_bytes": 1e9})
    assert "77 tokens/s  1.0 GB" in stream.getvalue()


def test_a_terminal_gets_a_bar_that_closes_after_an_error(events: Any) -> None:
    stream = io.StringIO()
    callback = TrainingProgress(stream, live=True)
    events(callback, "on_train_begin", 0)
    events(callback, "on_step_begin", 0)
    events(callback, "on_step_end", 1, seconds=2.0)
    events(callback, "on_log", 1, logs={"loss": 1.25, "num_tokens": 100.0, "epoch": 0.1})
    callback.close()
    callback.close()
    text = stream.getvalue()
    assert "1/10" in text
    assert "loss 1.2500" in text
    assert "0:18" in text


def test_figures_that_are_missing_are_left_out() -> None:
    assert describe({"loss": 1.0}) == "loss 1.0000"
    assert describe({"loss": 1.0, "grad_norm": None}) == "loss 1.0000"


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (0.4, "0:00"), (75.0, "1:15"), (3700.0, "1:01:40")])
def test_durations_read_as_a_clock(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
