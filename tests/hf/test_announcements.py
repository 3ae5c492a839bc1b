"""What happens to the data is said aloud when the trainer is made: counts, cuts, templates that were chosen."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

from sartor.run.loading import end_tokens
from tests.hf import tiny


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sartor")


def test_rows_tokens_and_what_max_length_cut_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.trainer(tmp_path, max_length=4)
    assert "train: 10 rows of text" in caplog.text
    assert "cut: 8 rows lost 29 tokens, 29 of them trained ones" in caplog.text


def test_what_was_cut_and_dropped_is_in_the_runs_files(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_length=4, max_steps=1)
    trainer.train()
    written = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert written == {"train": json.loads(json.dumps(dataclasses.asdict(trainer.preparation.summaries["train"])))}
    train = written["train"]
    assert (train["format"], train["num_rows"]) == ("text", 10)
    assert [train[f"num_truncated_{what}"] for what in ("rows", "tokens", "targets")] == [8, 29, 29]
    assert any("end-of-text token is appended to 10 rows" in note for note in train["notes"])


def test_the_built_in_template_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]
    tiny.trainer(tmp_path, rows=[{"messages": messages}])
    assert "no chat template: the built-in chatml is used" in caplog.text


def test_tokens_that_end_an_answer_are_those_of_the_generation_config() -> None:
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    model.generation_config.eos_token_id = [2, 0]
    assert end_tokens(model, tokenizer, {}) == ["<|im_end|>", "<|endoftext|>"]
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer, {}) == []


def test_a_saved_models_generation_config_is_read_before_its_weights_are(tmp_path: Path) -> None:
    model, tokenizer = tiny.make_model(dtype=torch.float32), tiny.make_tokenizer()
    assert end_tokens(str(tmp_path), tokenizer, {}) == []
    model.generation_config.eos_token_id = 2
    model.generation_config.save_pretrained(tmp_path)
    assert end_tokens(str(tmp_path), tokenizer, {}) == ["<|im_end|>"]
