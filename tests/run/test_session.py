"""A training without transformers' Trainer: the same bits as with it, stopped and gone on with, and as a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sartor.errors import ConfigurationError, RunFolderError
from sartor.records import DataSettings, EngineSettings
from sartor.run import checkpoint
from sartor.run.session import Session
from sartor.run.settings import RunSettings
from sartor.run.training import training
from tests.hf import tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "session.py"
STEPS = 6


def session_in(folder: Path, **changes: Any) -> Session:
    """A session of the tiny model and ten texts."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    settings = RunSettings(
        data=DataSettings(max_length=64), engine=EngineSettings(), batch_size=2, eval_batch_size=2, **changes
    )
    session = Session.of(tiny.make_model(), tokenizer, folder, settings)
    session.data.train = session.data.prepare(tiny.dataset(), "train")
    return session


def adamw(session: Session) -> Any:
    """As a trainer makes it by default."""

    def make(max_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        parameters = list(session.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / max_steps))

    return make


def run(session: Session, *, resume: str | bool | None = None, until: int = STEPS) -> list[float]:
    """Train until so many steps are done, and save there; returns the steps' losses."""
    losses = []
    with training(session, adamw(session), resume_from_checkpoint=resume) as train_loop:
        for step in train_loop.run_steps():
            losses.append(step.result.sums.mean_loss)
            if train_loop.steps.done == until:
                assert train_loop.save() == session.folder / f"checkpoint-{until}"
                break
    return losses


def test_it_gives_the_weights_of_a_trainer_bit_for_bit(tmp_path: Path) -> None:
    session = session_in(tmp_path / "session", max_steps=STEPS)
    with training(session, adamw(session)) as train_loop:
        for _ in train_loop.run_steps():
            train_loop.log()
    trainer = tiny.trainer(tmp_path / "trainer", max_steps=STEPS, optim="adamw_torch")
    trainer.train()
    theirs = dict(trainer.model.named_parameters())
    assert all(torch.equal(theirs[name], parameter) for name, parameter in session.model.named_parameters())
    logged = [json.loads(line) for line in (tmp_path / "session" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in logged] == tiny.losses(trainer.state.log_history)


def test_a_run_that_was_left_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = session_in(tmp_path / "whole", max_steps=STEPS)
    expected = run(whole)
    first = run(session_in(tmp_path / "parts", max_steps=STEPS), until=2)
    second = session_in(tmp_path / "parts", max_steps=STEPS)
    assert [*first, *run(second, resume=True)] == expected
    theirs = dict(whole.model.named_parameters())
    assert all(torch.equal(theirs[name], parameter) for name, parameter in second.model.named_parameters())
    assert checkpoint.newest(tmp_path / "parts").path == tmp_path / "parts" / f"checkpoint-{STEPS}"


def test_what_a_session_trains_is_evaluated_and_saved(tmp_path: Path) -> None:
    session = session_in(tmp_path / "run", num_train_epochs=20)
    with training(session, adamw(session)) as train_loop:
        before = train_loop.evaluate(session.data.train).loss
        assert sum(1 for _ in train_loop.run_steps()) == 20 * 5  # ten rows, two at a time
        after = train_loop.evaluate(session.data.train).loss
    assert after < before / 2
    session.save(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), session.model.parameters(), strict=True))
    assert session.engine is None


def test_without_data_or_an_end_it_is_said_what_to_do(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.data.train = tiny.stream(tiny.texts())
    with pytest.raises(ConfigurationError, match="max_steps"), training(session, adamw(session)):
        pass
    session.data.train = None
    with pytest.raises(ConfigurationError, match="prepare"), training(session, adamw(session)):
        pass
    with pytest.raises(RunFolderError, match="checkpoint"):
        run(session_in(tmp_path), resume=True)


def test_the_example_trains_and_goes_on(tmp_path: Path) -> None:
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} {% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }} <|im_end|> {% endgeneration %}{% else %}{{ m.content }} <|im_end|> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": f"because w{number}"}]}
        for number in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    printed = []
    for steps in ("100", "110"):
        command = [sys.executable, str(EXAMPLE), str(tmp_path / "model"), str(tmp_path / "rows.jsonl")]
        done = subprocess.run(
            [*command, str(tmp_path / "run"), steps], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert [line.split(":")[0] for line in printed[1].splitlines() if line.startswith("step")] == ["step 110"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() == model.num_parameters()
    assert len(EXAMPLE.read_text().splitlines()) <= 60
