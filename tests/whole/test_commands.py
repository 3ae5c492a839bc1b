"""Whole runs through the command line: what they leave, and what is said when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sartor.errors import RunFolderError
from sartor.run.folder_lock import LOCK_NAME
from tests.hf import tiny
from tests.whole.conftest import ANSWERS, QUESTIONS, Commands, environment

MAPPING = ("--map", "user={ask}", "--map", "assistant={say}")
QUICK = ("--report_to", "none", "--use_cpu", "--logging_steps", "1", "--eos_token", "<|im_end|>")
TOKEN = "hf_NobodyMaySeeThis"


@pytest.fixture(scope="module")
def trained(commands: Commands, model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned its rows by heart; its options come from files and the command line, and the last wins."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    options = folder.with_name("options.yaml")
    options.write_text(
        f"learning_rate: 9.0\nmax_steps: 1\nlr_scheduler_type: constant\nhub_token: {TOKEN}\n", encoding="utf-8"
    )
    more = folder.with_name("more.toml")
    more.write_text("max_steps = 2\nper_device_train_batch_size = 4\n", encoding="utf-8")
    files = ("--config", options, "--config", more)
    done = commands(
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, *files,
        "--max_steps", "60", "--learning-rate", "1e-2", "--save_strategy", "steps", "--save_steps", "40",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert f"sartor chat {folder}" in done.stdout
    return folder


def test_a_run_leaves_a_model_and_what_happened(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in trained.iterdir()}
    expected = {
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "data.json",
        "plan.json",
        "metrics.jsonl",
        "sft_config.json",
    }
    assert names >= expected | {"README.md", "trainer_state.json", "checkpoint-40", "checkpoint-60"}
    for folder in (trained, trained / "checkpoint-40"):
        AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
    assert lines[59]["loss"] < lines[0]["loss"] / 10
    assert {"tokens_per_second", "peak_memory_bytes"} <= lines[0].keys()
    assert json.loads((trained / "plan.json").read_text(encoding="utf-8"))["layout"] == "flat, attention per document"


def test_the_command_line_wins_over_files_and_a_later_file_over_an_earlier(trained: Path) -> None:
    options = json.loads((trained / "sft_config.json").read_text(encoding="utf-8"))
    assert (options["learning_rate"], options["max_steps"]) == (1e-2, 60)
    assert (options["per_device_train_batch_size"], options["lr_scheduler_type"]) == (4, "constant")


def test_no_file_is_a_pickle_or_holds_the_token(trained: Path) -> None:
    for file in (path for path in trained.rglob("*") if path.is_file()):
        assert file.suffix not in {".bin", ".pt", ".pth", ".pkl"}, file
        content = file.read_bytes()
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), file
        assert TOKEN.encode() not in content, file


def test_chat_answers_with_what_was_learned(commands: Commands, trained: Path) -> None:
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        done = commands("chat", trained, "--prompt", question, "--greedy", "--device", "cpu")
        assert (done.code, done.stdout.strip()) == (0, answer), done.stderr


def test_a_folder_with_a_run_is_refused_and_left_as_it_is(
    commands: Commands, trained: Path, unreadable_model: Path, rows: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    done = commands("train", "--model", unreadable_model, "--data", rows, *MAPPING, "--output_dir", trained)
    assert "already holds a run" in done.problem()
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize(
    ("more", "line", "told"),
    [
        (["--max_stepss", "3"], None, ["--max_stepss", "--max_steps"]),
        (["--data", "no_such_file.jsonl"], None, ["no_such_file.jsonl"]),
        (["--model", "no_such_folder/model"], None, ["no_such_folder/model"]),
        ([], '{"ask": "What is green?", "say": ', ["rows.jsonl", "9"]),
        ([], '{"ask": "What is green?", "say": null}', ["rows.jsonl", "9", "say"]),
        (["--map", "user={asked}", "--map", "assistant={say}"], None, ["asked", "ask", "say"]),
        (["--learning_rate", "quick"], None, ["learning_rate", "quick"]),
    ],
    ids=[
        "misspelt option",
        "missing file",
        "missing model",
        "broken row",
        "empty column",
        "no such column",
        "no number",
    ],
)
def test_what_is_wrong_is_one_clear_error_before_weights_are_loaded(
    more: list[str],
    line: str | None,
    told: list[str],
    commands: Commands,
    unreadable_model: Path,
    rows: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(rows.read_text(encoding="utf-8") + (f"{line}\n" if line else ""), encoding="utf-8")
    mapping = () if "--map" in more else MAPPING
    folder = tmp_path / "out"
    done = commands("train", "--model", unreadable_model, "--data", data, *mapping, "--output_dir", folder, *more)
    for text in told:
        assert text in done.problem()
    assert "safetensors" not in done.stderr
    assert not folder.exists() or not any(folder.iterdir())


def test_unknown_columns_get_a_row_shown_and_a_mapping_that_works(
    commands: Commands, unreadable_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "What is blue?", "reasoning": "Look up.", "answer": "the sky"}\n', encoding="utf-8")
    done = commands("train", "--model", unreadable_model, "--data", data, "--output_dir", tmp_path / "out")
    told = done.problem()
    assert "Look up." in told
    assert '--map user="{question}" --map assistant="<think>{reasoning}</think> {answer}"' in told


def test_ctrl_c_saves_a_checkpoint_and_exits_with_130(
    commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    metrics = folder / "metrics.jsonl"

    def has_stepped() -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= 3

    done = commands(
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--max_steps", "100000",
        until=has_stepped,
    )  # fmt: skip
    assert done.code == 130, done.stderr
    assert "Traceback" not in done.stderr
    (checkpoint,) = folder.glob("checkpoint-*")
    assert str(checkpoint) in done.stderr
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == int(checkpoint.name.removeprefix("checkpoint-")) >= 3
    assert not (folder / "model.safetensors").exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk can be made by root on Linux only")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a small disk cannot be made: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_too_small_a_disk_is_told_before_training_and_on_request_trained_on_with(
    commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    """A checkpoint takes three times its weights, with two moments each: here one fits, and then the final model."""
    from transformers import AutoModelForCausalLM

    needed = sum(path.stat().st_size for path in model.iterdir())
    with small_disk(tmp_path / "disk", int(needed * 4.6)):
        folder = tmp_path / "disk" / "out"
        command = [
            "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--max_steps", "3",
            "--save_strategy", "steps", "--save_steps", "1",
        ]  # fmt: skip
        told = commands(*command).problem()
        assert "the checkpoints of this run need about" in told
        assert "save_total_limit" in told
        assert not [path.name for path in folder.iterdir() if path.is_dir()]
        done = commands(*command, "--on_full_disk", "continue", "--resume", "if_any")
        assert done.code == 0, done.stderr
        assert "no space left on the disk" in done.stderr
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
        AutoModelForCausalLM.from_pretrained(folder / "checkpoint-1")
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_stopped_run_goes_on_with_the_same_command_and_resume(
    commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    """SIGTERM saves too; what comes out is what a run that was never stopped leaves."""
    folder, whole = tmp_path / "out", tmp_path / "whole"

    def command(place: Path) -> list[str | Path]:
        return [
            "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", place, "--max_steps", "60",
            "--save_strategy", "steps", "--save_steps", "1000", "--logging_steps", "1",
        ]  # fmt: skip

    metrics = folder / "metrics.jsonl"
    stopped = commands(
        *command(folder),
        until=lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3,
        interrupt=signal.SIGTERM,
    )
    assert stopped.code == 143, stopped.stderr
    assert "--resume" in stopped.stderr
    assert not (folder / "model.safetensors").exists()
    resumed = commands(*command(folder), "--resume")
    assert resumed.code == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    assert commands(*command(whole)).code == 0
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resuming_where_there_is_nothing_is_one_clear_error(
    commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    """Killed before its first checkpoint was whole: whatever is asked names the option that begins anew."""
    folder = tmp_path / "out"
    command = [
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--save_strategy", "no",
    ]  # fmt: skip
    metrics = folder / "metrics.jsonl"

    def has_stepped() -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= 1

    long = [*command, "--max_steps", "1000000"]
    assert commands(*long, until=has_stepped, interrupt=signal.SIGKILL).code == -signal.SIGKILL
    half = folder / "_checkpoint-2.partial"
    half.mkdir()
    resumed = commands(*command, "--resume").problem()
    assert f"there is no checkpoint in {folder} to go on from" in resumed
    for told in (resumed, commands(*command).problem()):
        assert "--resume if_any" in told
        assert "another output_dir" not in told.partition("go on")[2]
    assert commands(*command, "--max_steps", "3", "--resume", "if_any").code == 0
    assert_trained(folder)
    assert not half.exists()


def test_a_run_whose_output_nobody_reads_is_finished(
    commands: Commands, model: Path, rows: Path, tmp_path: Path
) -> None:
    """As under `sartor train ... 2>&1 | head -1`, or when the terminal that shows it is gone."""
    folder = tmp_path / "out"
    done = commands(
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--max_steps", "3",
        output=("left", "left"),
    )  # fmt: skip
    assert done.code == 0
    assert_trained(folder)


def assert_trained(folder: Path) -> None:
    """Three steps, their metrics, and a model, whose files hold nothing that was printed."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 3]
    for name in ("plan.json", "sft_config.json", "trainer_state.json"):
        json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (("/dev/full", None), "lost from standard output: No space left on device"),
        ((None, "/dev/full"), "lost from standard error: No space left on device"),
        ((None, "closed"), "The model is in"),
        (("closed", "closed"), ""),
    ],
)
def test_a_log_that_cannot_be_written_costs_its_lines_and_not_the_run(
    output: tuple[str | None, str | None],
    told: str,
    commands: Commands,
    model: Path,
    rows: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    done = commands(
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--max_steps", "3",
        output=output,
    )  # fmt: skip
    assert done.code == 0
    assert_trained(folder)
    assert told in done.stdout + done.stderr
    if "lost" in told:
        assert int(re.findall(r"(\d+) lines? (?:was|were) lost", done.stdout + done.stderr)[0]) >= 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_python_itself_does_not_fail_at_its_end_where_the_log_is_full(model: Path, rows: Path, tmp_path: Path) -> None:
    """A process as a shell starts it: the exit code is the run's."""
    words = ["-m", "sartor.cli.main", "train", "--model", model, "--data", rows, "--output_dir", tmp_path / "out"]
    command = shlex.join(map(str, [sys.executable, *words, *MAPPING, *QUICK, "--max_steps", "3"]))
    shell = ["sh", "-c", f"exec {command} >/dev/full 2>/dev/full"]
    assert subprocess.run(shell, env=environment(), cwd=tmp_path, check=False).returncode == 0
    assert_trained(tmp_path / "out")


def test_a_second_run_in_one_folder_is_refused_until_the_first_has_ended_or_was_killed(
    commands: Commands, model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sartor.cli.main import main

    folder = tmp_path / "out"
    metrics = folder / "metrics.jsonl"
    command = [
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--save_strategy", "steps",
        "--save_steps", "1", "--save_total_limit", "1", "--logging_steps", "1000000",
    ]  # fmt: skip
    long = [*map(str, command), "--max_steps", "1000000"]
    told: list[str] = []

    def another_was_refused() -> bool:
        """While the first one trains: a new run, one that resumes, and one of a script."""
        if told:
            return True
        if not list(folder.glob("checkpoint-*")):
            return False
        before = {path: path.read_bytes() for path in folder.glob("*.json*")}
        for more in ([], ["--resume"], ["--resume", "if_any"]):
            assert main([*long, *more]) == 2
            told.append(capsys.readouterr().err)
        with pytest.raises(RunFolderError) as caught:
            tiny.trainer(folder).train(resume_from_checkpoint=True)
        told.append(str(caught.value))
        assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before
        return True

    killed = commands(*long, until=another_was_refused, interrupt=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert len(told) == 4
    lock = folder / LOCK_NAME
    holder = json.loads(lock.read_text(encoding="utf-8"))
    for text in told:
        for part in (str(folder), str(holder["process"]), holder["host"], holder["started"], f"delete {lock}"):
            assert part in text
    (step,) = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")]
    more = ["--max_steps", str(step + 3), "--accept_changes", "max_steps"]
    done = commands(*command, *more, "--resume")
    assert done.code == 0, done.stderr
    assert not lock.exists()
    assert metrics.exists()


def test_a_closed_terminal_does_not_end_a_run(commands: Commands, model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def has_saved() -> bool:
        return len(list(folder.glob("checkpoint-*"))) >= 2

    done = commands(
        "train", "--model", model, "--data", rows, *MAPPING, *QUICK, "--output_dir", folder, "--max_steps", "40",
        "--save_strategy", "steps", "--save_steps", "1", until=has_saved, interrupt=signal.SIGHUP,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert (folder / "model.safetensors").exists()
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 41
    assert len(list(folder.glob("checkpoint-*"))) == 40


@pytest.mark.parametrize(
    ("command", "limit_s"),
    [(["-m", "sartor.cli.main", "--help"], 0.3), (["-c", "import sartor"], 0.1)],
    ids=["sartor --help", "import sartor"],
)
def test_starting_is_quick(command: list[str], limit_s: float) -> None:
    """Above the interpreter's own start; the best of several, since other work on the machine must not fail this."""

    def best(arguments: list[str]) -> float:
        taken = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, check=True)
            taken.append(time.perf_counter() - start)
        return min(taken)

    assert best(command) - (best(["-c", "pass"]) if command[0] == "-c" else 0.0) < limit_s
