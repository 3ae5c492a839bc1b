"""`sartor plan`: from a configuration alone; exit codes, JSON, what is chosen and what is proposed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import sartor.demo
from sartor.cli.main import main
from sartor.cli.plan_flags import read, usage
from sartor.errors import ConfigurationError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, and weights that cannot be read."""
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaConfig(
        vocab_size=4_096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2_048,
    ).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    return folder


def plan(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    code = main(["plan", *map(str, argv)])
    return code, capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    _, out = plan(capsys, *argv, "--json")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_page_says_what_is_needed_chosen_and_what_others_would_cost(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = plan(capsys, "--model", model, "--gpu", "T4", "--max_length", "256")
    assert code == 0
    for words in ("parameters", "optimizer states", "margin and losses", "fits", "tokens at once",
                  "every layer recomputed:", "--optimizer_implementation foreach", "cheap operations recomputed:",
                  "optimizer states on the host:", "listed:", "float16", "on T4",
                  "CUDA by rules, unmeasured"):  # fmt: skip
        assert words in out


def test_json_says_the_same_in_bytes_and_what_was_asked_for_is_obeyed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(
        capsys, "--model", model, "--memory", "8GB", "--max_length", "256", "--bf16", "false", "--max_steps", "10",
        "--micro_batch_tokens", "300", "--gradient_checkpointing", "--loss_chunk_rows", "64",
    )  # fmt: skip
    assert found["fits"] is True
    assert found["available_bytes"] == 8_000_000_000
    assert sum(found["components"].values()) == found["peak_bytes"] < found["chosen"]["needed_bytes"]
    assert (found["chosen"]["micro_batch_tokens"], found["chosen"]["recomputed_layers"]) == (300, 1)
    assert found["chosen"]["loss_chunk_rows"] == 64
    assert found["run_s"] == pytest.approx(10 * found["chosen"]["step_s"])
    kept = next(entry for entry in found["neighbours"] if entry["label"] == "nothing recomputed")
    assert kept["needed_bytes"] > found["chosen"]["needed_bytes"]
    assert kept["step_s"] < found["chosen"]["step_s"]
    assert "measured" in found["rates"]["source"]


def test_where_nothing_fits_the_leanest_is_shown_and_what_would_fit_with_its_bytes(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--model", model, "--memory", "600MB", "--max_length", "512", "--bf16", "false")
    code, out = plan(capsys, *argv, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["fits"] is False
    assert found["missing_bytes"] == found["chosen"]["needed_bytes"] - found["available_bytes"] > 0
    assert (found["chosen"]["micro_batch_tokens"], found["chosen"]["recomputed_layers"]) == (512, 1)
    names = [entry["name"] for entry in found["proposals"]]
    assert any(name.startswith("LoRA") for name in names)
    for entry in found["proposals"]:
        assert entry["needed_bytes"] > 0
        assert entry["fits"] == (entry["needed_bytes"] <= found["available_bytes"])
        assert entry["set"]
        assert entry["cost"]


def test_rows_are_prepared_as_a_training_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    embedded = Path(sartor.demo.__file__).parent / "assets" / "base"
    shutil.copytree(embedded, base, ignore=shutil.ignore_patterns("*.safetensors"))
    transformers.AutoConfig.from_pretrained(base, num_hidden_layers=1, layer_types=None).save_pretrained(base)
    sources = []
    for name, count, words in (("short", 30, 3), ("long", 10, 40)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": "the moon " * words}) + "\n" for _ in range(count)))
        sources.append(str(path))
    argv = ("--model", base, "--memory", "2GB", "--bf16", "false", "--per_device_train_batch_size", "4",
            "--num_train_epochs", "2", "--micro_batch_tokens", "64", "--gradient_checkpointing", "false",
            "--data_cache", tmp_path / "cache")  # fmt: skip
    assert as_json(capsys, *argv, "--data", sources[0])["num_steps"] == 16  # two times 8 batches
    code, out = plan(capsys, *argv, "--data", *(f"{source}:0.5" for source in sources))
    assert code == 0
    assert re.search(r"(1[0-9]|2[0-9]) rows, the longest document 8[0-9] tokens", out)  # of both, until one ends


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model is missing"),
        (["--model", "m", "--gpu", "T4", "--memory", "1GB"], "give one of them"),
        (["--model", "m", "--grad_accum", "3"], "grad_accum"),
    ],
)
def test_wrong_commands_are_refused_with_what_to_do(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(argv)


def test_help_names_what_can_be_asked_for() -> None:
    for words in ("--gpu", "--memory", "--json", "--max_length", "--use_peft", "Exit code"):
        assert words in usage()


def test_a_model_that_is_not_there_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(tmp_path / "nothing")]) == 2
    assert "no model can be loaded" in capsys.readouterr().err
