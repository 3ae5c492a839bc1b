"""What was read of a stream is known when a run ends, and its rows are named when a step goes wrong."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sartor.data.reading import sources
from sartor.errors import NonFiniteError
from tests.hf import tiny


def test_data_json_and_log_tell_at_the_end_what_was_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*tiny.texts(9), {"text": " ".join(["w1"] * 40)}]
    trainer = tiny.trainer(tmp_path, rows=tiny.stream(rows), max_steps=8, max_length=12)
    with caplog.at_level(logging.INFO, "sartor"):
        trainer.train()
    written = json.loads((tmp_path / "data.json").read_text())["train"]
    whole = tiny.trainer(tmp_path / "whole", rows=tiny.dataset(rows), max_length=12).preparation.summaries["train"]
    for name in ("num_rows", "num_examples", "num_tokens", "num_targets", "longest_tokens", "num_truncated_tokens"):
        assert written[name] == getattr(whole, name), name
    assert whole.num_truncated_tokens
    assert f"train: 10 rows of text; {whole.num_tokens:,} tokens" in caplog.text
    assert not any("are checked and counted as they are read" in note for note in written["notes"])


class Breaks(TrainerCallback):
    """Makes the weights useless once everything has been checked."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.model.embed_tokens.weight.fill_(float("nan"))


def test_rows_of_a_step_that_is_not_finite_are_named_by_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in tiny.texts(10)))
    rows = sources.load(file).to_iterable_dataset()
    trainer = tiny.trainer(tmp_path / "run", rows=rows, max_steps=4, callbacks=[Breaks()])
    with pytest.raises(NonFiniteError, match=r"a\.jsonl, line 1; a\.jsonl, line 2"):
        trainer.train()
