"""`sartor train`: a model comes out, a used folder is refused, and what is wrong is told before weights are loaded."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sartor.cli.main import main
from sartor.hf import SFTTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{n} + {n} = ", "completion": str(2 * n)}) for n in range(8)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)


def train(model: Path, rows: Path, folder: Path, *more: str) -> int:
    quick = ["--max_steps=2", "--logging_steps=1", "--use_cpu", "--no-bf16", "--report_to=none", "--save_strategy=no"]
    return main(["train", "--model", str(model), "--data", str(rows), "--output_dir", str(folder), *quick, *more])


@pytest.mark.filterwarnings("always::sartor.errors.SartorWarning")
def test_the_final_model_is_in_output_dir_and_the_folder_is_then_refused(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    assert train(model, rows, folder, "--learning_rate", "1e-2", "--dataloader_num_workers", "1") == 0
    captured = capsys.readouterr()
    assert f"sartor chat '{folder}'" in captured.out
    assert "step 2/2" in captured.err
    assert "note: dataloader_num_workers=1 has no effect" in captured.err
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "![Loss per target token](figures/loss.png)" in report
    assert (folder / "figures" / "loss.png").stat().st_size > 1_000
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert json.loads((folder / "sft_config.json").read_text(encoding="utf-8"))["disable_tqdm"] is False
    assert train(model, rows, folder) == 2
    assert "already holds a run or a model" in capsys.readouterr().err


@pytest.mark.parametrize("trace", ["trainer_state.json", "metrics.jsonl", "model.safetensors", "checkpoint-3"])
def test_each_trace_of_a_run_is_enough_to_refuse_a_folder(
    trace: str, model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / trace).write_text("{}\n")
    assert train(model, rows, folder) == 2
    assert trace in capsys.readouterr().err


def test_a_file_as_output_dir_is_refused(
    model: Path, rows: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    assert train(model, rows, rows) == 2
    assert "is a file" in capsys.readouterr().err


def test_lora_leaves_an_adapter(model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(model, rows, folder, "--use_peft", "--lora_r", "2", "--lora_target_modules", "all-linear") == 0
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (2, 32, 0.05)
    assert not (folder / "model.safetensors").exists()


def test_evaluation_rows_are_evaluated(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train(model, rows, tmp_path / "run", "--eval_data", str(rows), "--eval_strategy", "epoch", "--eval_on_start")
        == 0
    )
    assert "evaluation loss" in capsys.readouterr().err


def test_option_model_and_data_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    missing = tmp_path / "missing"
    assert train(missing, tmp_path / "none.jsonl", tmp_path / "run", "--packing", "--max_length", "none") == 2
    told = capsys.readouterr().err
    assert told.startswith("sartor train: 3 problems")
    for text in ("packing=True needs max_length", str(missing), "none.jsonl"):
        assert text in told
    assert not (tmp_path / "run").exists()


def test_a_broken_row_is_found_before_weights_are_loaded(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write('\n{"prompt": "x", "completion": \n')
    assert train(model, rows, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert "9" in told
    assert "rows.jsonl" in told


def test_an_interruption_says_what_was_saved(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def interrupted(self: SFTTrainer, **options: Any) -> None:
        for step in (2, 10):
            (folder / f"checkpoint-{step}").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(SFTTrainer, "train", interrupted)
    assert train(model, rows, folder) == 130
    told = capsys.readouterr().err
    assert f"Stopped. The newest checkpoint, of step 10, is {folder / 'checkpoint-10'}." in told
    assert "Go on with the same command and --resume." in told


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_error(
    error: Exception,
    model: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: SFTTrainer, **options: Any) -> None:
        raise error

    monkeypatch.setattr(SFTTrainer, "save_model", full)
    assert train(model, rows, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert "no space is left on one of these: the disk of output_dir" in told
    assert "No checkpoint was saved." in told


def test_the_disk_that_is_full_is_named(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def full(self: SFTTrainer, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(elsewhere))

    monkeypatch.setattr(SFTTrainer, "save_model", full)
    assert train(model, rows, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert f"the disk of {elsewhere}" in told
    assert "output_dir" not in told


def test_a_run_that_ended_before_its_first_step_leaves_nothing_that_refuses_the_next(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(Exception):
        pass

    def end(*given: Any) -> None:
        raise Ends

    with monkeypatch.context() as patch:
        patch.setattr("sartor.run.disk.require_room_for_run", end)
        with pytest.raises(Ends):
            train(model, rows, tmp_path / "run", "--save_strategy=epoch")
    assert (tmp_path / "run" / "plan.json").exists()
    assert train(model, rows, tmp_path / "run") == 0


def test_another_error_is_not_taken_for_a_full_disk(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SFTTrainer, **options: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(SFTTrainer, "train", fail)
    with pytest.raises(OSError, match="broken"):
        train(model, rows, tmp_path / "run")
