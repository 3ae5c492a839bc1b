"""Options that shape a run without changing its mathematics, and scripts that use transformers' and trl's parsers."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor import SFTTrainer
from sartor.errors import ConfigurationError
from tests.hf import tiny
from tests.hf.recording import Recorder


def final_losses(folder: Path, **options: Any) -> list[float]:
    trainer = tiny.trainer(folder, **{"max_steps": 4, **options})
    trainer.train()
    return tiny.losses(trainer.state.log_history)


@pytest.mark.parametrize(
    "cut",
    [{"micro_batch_tokens": 8}, {"gradient_checkpointing": True}, {"loss_chunk_rows": 3}],
    ids=lambda cut: next(iter(cut)),
)
def test_memory_options_change_no_number(cut: dict[str, Any], tmp_path: Path) -> None:
    assert final_losses(tmp_path, **cut) == pytest.approx(final_losses(tmp_path), abs=2e-6)


def test_the_same_optimizer_batch_in_other_device_batches_is_the_same_step(tmp_path: Path) -> None:
    shapes = [(4, 1), (2, 2), (1, 4)]
    runs = [
        final_losses(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=2)
        for size, steps in shapes
    ]
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], abs=2e-6)


def test_noise_on_embeddings_changes_training_and_not_evaluation(tmp_path: Path) -> None:
    rows = tiny.texts(3, start=20)
    plain, noisy = (
        tiny.trainer(tmp_path, max_steps=1, learning_rate=0.0, eval_dataset=rows, **options)
        for options in ({}, {"neftune_noise_alpha": 5.0})
    )
    plain.train()
    noisy.train()
    assert tiny.losses(plain.state.log_history) != tiny.losses(noisy.state.log_history)
    assert plain.evaluate()["eval_loss"] == noisy.evaluate()["eval_loss"]
    embeddings = noisy.model.get_input_embeddings()
    assert not embeddings._forward_hooks


def test_noise_is_the_same_for_every_cut(tmp_path: Path) -> None:
    options = {"neftune_noise_alpha": 5.0}
    assert final_losses(tmp_path, **options, micro_batch_tokens=8) == pytest.approx(
        final_losses(tmp_path, **options), abs=2e-6
    )


def test_dropout_is_on_in_training_and_off_in_evaluation(tmp_path: Path) -> None:
    rows = tiny.texts(3, start=20)
    model = tiny.make_model(attention_dropout=0.5)
    trainer = tiny.trainer(tmp_path, model=model, eval_dataset=rows, max_steps=2, learning_rate=0.0, logging_steps=1)
    trainer.train()
    assert tiny.losses(trainer.state.log_history) != final_losses(tmp_path, learning_rate=0.0, max_steps=2)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    first, second, other = (final_losses(tmp_path, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_determinism_can_be_asked_for(tmp_path: Path) -> None:
    try:
        final_losses(tmp_path, full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_of_similar_length_come_together(tmp_path: Path) -> None:
    rows = tiny.dataset(tiny.texts(40))
    counts = []

    class Count(Recorder):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            counts.append(trainer.total_train_tokens)

    trainer = tiny.trainer(
        tmp_path,
        rows=rows,
        callbacks=[Count()],
        train_sampling_strategy="group_by_length",
        gradient_accumulation_steps=2,
        num_train_epochs=1,
    )
    trainer.train()
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    assert counts[-1] == sum(lengths)
    per_step = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert max(per_step) - min(per_step) > 15  # short with short, long with long: a mixed batch of 4 varies less


def test_the_cache_is_emptied_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr("sartor.hf.trainer_loop.clear_device_cache", lambda: emptied.append(1))
    final_losses(tmp_path, max_steps=5, torch_empty_cache_steps=2)
    assert len(emptied) == 3  # before steps 1, 3 and 5, as in Trainer


def test_tensorboard_gets_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    losses = final_losses(tmp_path / "run", report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)


def test_every_tracker_that_is_installed_can_be_reported_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    assert len(final_losses(tmp_path / "run", report_to="all")) == 4


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_is_shown_by_transformers_own_callbacks(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final_losses(tmp_path, disable_tqdm=quiet)
    shown = capsys.readouterr()
    assert ("'loss'" in shown.out) == quiet or not quiet
    assert ("it/s" in shown.err) == (not quiet)


def test_metrics_of_memory_are_transformers_own(tmp_path: Path) -> None:
    rows = tiny.texts(2)
    trainer = tiny.trainer(
        tmp_path, max_steps=1, skip_memory_metrics=False, eval_dataset=rows, eval_strategy="steps", eval_steps=1
    )
    assert "train_mem_cpu_alloc_delta" in trainer.train().metrics
    assert "eval_mem_cpu_alloc_delta" in trainer.evaluate()
    assert "test_mem_cpu_alloc_delta" in trainer.predict(rows).metrics


def test_a_text_is_made_of_rows_by_a_function(tmp_path: Path) -> None:
    rows = tiny.dataset([{"subject": "moon"}, {"subject": "sun"}])
    trainer = tiny.trainer(tmp_path, rows=rows, formatting_func=lambda row: f"the {row['subject']} is old")
    text = trainer.processing_class.decode(trainer.train_dataset[1]["input_ids"])
    assert text == "the sun is old <|endoftext|>"


def test_prepared_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = tiny.dataset([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 2)
    trainer = tiny.trainer(tmp_path, rows=rows, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=1)
    assert trainer.train_dataset.to_list() == rows.to_list()
    trainer.train()
    assert trainer.state.log_history[0]["num_tokens"] == 6
    with pytest.raises(ConfigurationError, match="dataset_kwargs"):
        tiny.trainer(tmp_path, rows=rows, dataset_kwargs={"append_concat_token": True})


def test_more_epochs_than_one_visit_every_row_once_each(tmp_path: Path) -> None:
    rows = [{"text": f"w{number}"} for number in range(10)]
    seen: list[int] = []

    class Mine(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **keywords: Any) -> Any:
            seen.extend(inputs["input_ids"][:, 0].tolist())
            return super().compute_loss(model, inputs, *rest, **keywords)

    tiny.trainer(tmp_path, kind=Mine, rows=rows, num_train_epochs=2).train()
    words = [tiny.VOCABULARY.index(f"w{number}") for number in range(10)]
    assert sorted(seen[:10]) == words
    assert sorted(seen[10:]) == words
    assert seen[:10] != seen[10:]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from {parsers} import {parser}
from sartor import SFTConfig, SFTTrainer
from tests.hf import tiny

parser = {parser}(SFTConfig)
(args,) = parser.parse_args_into_dataclasses() if {parser!r} == "HfArgumentParser" else parser.parse_args_and_config()
trainer = SFTTrainer(
    {model!r}, args, train_dataset=tiny.dataset(), eval_dataset=tiny.dataset(tiny.texts(3, start=20))
)
if __name__ == "__main__":
    trainer.train()
    trainer.save_model()
    print("loss", trainer.evaluate()["eval_loss"])
"""


@pytest.mark.parametrize(("parsers", "parser"), [("transformers", "HfArgumentParser"), ("trl", "TrlParser")])
def test_a_script_with_a_parser_runs_from_end_to_end(
    parsers: str, parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(parsers, reason=f"{parsers} is not installed")
    tiny.make_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.make_tokenizer().save_pretrained(tmp_path / "base")
    script = tmp_path / "script.py"
    root = str(Path(__file__).parents[2])
    script.write_text(
        SCRIPT.format(root=root, parsers=parsers, parser=parser, model=str(tmp_path / "base")), encoding="utf-8"
    )
    flags = [
        "--max_steps",
        "3",
        "--learning_rate",
        "1e-2",
        "--bf16",
        "--use_cpu",
        "--report_to",
        "none",
        "--per_device_train_batch_size",
        "2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--max_length",
        "16",
        "--gradient_checkpointing",
        "--logging_steps",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [str(script), "--output_dir", str(tmp_path / "run"), *flags])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "loss 4." in out or "loss 5." in out
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert plan["gradient_checkpointing"] is True
    assert (tmp_path / "run" / "model.safetensors").is_file()
