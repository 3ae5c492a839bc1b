"""What a run leaves: folders that `from_pretrained` loads, JSON that transformers reads, and no pickle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState

from sartor.errors import RunFolderError
from sartor.memory.plan import plan_of
from sartor.report import metrics
from sartor.run import saving
from tests.hf import tiny
from tests.hf.recording import Recorder

STEPS = {"save_strategy": "steps", "save_steps": 1}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_checkpoint_loads_as_a_model_and_is_the_model_of_its_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, **STEPS, max_steps=2)
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(last.get_parameter(name), parameter), name
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert any(not torch.equal(first.get_parameter(name), p) for name, p in trainer.model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint-2").get_vocab() == trainer.processing_class.get_vocab()


def test_the_state_of_a_checkpoint_is_transformers_own(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, **STEPS, max_steps=2)
    trainer.train()
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json"))
    assert state.global_step == 2
    assert state.max_steps == 2
    assert state.log_history == trainer.state.log_history[:2]
    assert "TrainerControl" in state.stateful_callbacks


def test_generate_after_training_equals_generate_of_the_saved_model(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    prompt = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 8, "do_sample": False}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert torch.equal(trainer.model.eval().generate(prompt, **options), loaded.generate(prompt, **options))


def test_no_pickle_is_written_anywhere(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, **STEPS, max_steps=2, eval_dataset=tiny.texts(2), eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl", ".pickle"}, path
        start = path.read_bytes()[:4]
        assert not start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), path


def test_a_run_folder_holds_configuration_plan_and_metrics(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2, hub_token="hf_secret", eos_token="<|im_end|>")
    trainer.train()
    written = json.loads((tmp_path / "sft_config.json").read_text(encoding="utf-8"))
    assert written["learning_rate"] == 0.01
    assert written["eos_token"] == "<|im_end|>"
    assert plan_of(json.loads((tmp_path / "plan.json").read_text())) == trainer.plan
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert {"loss", "num_tokens", "tokens_per_second", "peak_memory_bytes", "model_flops_utilization"} <= set(rows[0])
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hf_secret" not in path.read_bytes(), path


def test_only_as_many_checkpoints_as_asked_are_kept_and_the_best_is_among_them(tmp_path: Path) -> None:
    values = iter([0.9, 0.1, 0.2, 0.3])
    trainer = tiny.trainer(
        tmp_path,
        **STEPS,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="luck",
        greater_is_better=True,
        compute_metrics=lambda given: {"luck": next(values)},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=4,
    )
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(best.get_parameter(name), parameter), name


def test_with_a_limit_of_one_only_the_best_is_left_at_the_end(tmp_path: Path) -> None:
    values = iter([0.9, 0.1])
    tiny.trainer(
        tmp_path,
        **STEPS,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="luck",
        compute_metrics=lambda given: {"luck": next(values)},
        eval_dataset=tiny.texts(2),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
    ).train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]


def run_before(folder: Path, *, ahead_s: float, **options: Any) -> None:
    """A run of other weights, whose checkpoints have later steps than those that follow, and another clock's times."""
    earlier = tiny.trainer(folder, save_strategy="steps", save_steps=3, max_steps=9, learning_rate=0.03, **options)
    earlier.train()
    for checkpoint in folder.glob("checkpoint-*"):
        os.utime(checkpoint, (time.time() + ahead_s,) * 2)


@pytest.mark.parametrize("ahead_s", [-1e8, 1e8])
def test_an_earlier_runs_checkpoints_are_the_older_ones_whatever_the_clock_says(ahead_s: float, tmp_path: Path) -> None:
    run_before(tmp_path, ahead_s=ahead_s)
    tiny.trainer(tmp_path, **STEPS, save_total_limit=2, max_steps=4).train()
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    tiny.trainer(tmp_path, **STEPS, max_steps=4).train(resume_from_checkpoint=True)  # both are this run's, or refused
    whole = tiny.trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(last.get_parameter(name), parameter), name


@pytest.mark.parametrize("ahead_s", [-1e8, 1e8])
def test_a_resumed_run_goes_on_from_its_own_newest_and_keeps_that(ahead_s: float, tmp_path: Path) -> None:
    """Where an earlier run's checkpoints have later steps, and stay where they are."""
    run_before(tmp_path, ahead_s=ahead_s)
    tiny.trainer(tmp_path, **STEPS, max_steps=2).train()
    assert checkpoints(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 6, 9)]
    resumed = tiny.trainer(
        tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2, max_steps=4, accept_changes=["max_steps"]
    )
    told: list[str] = []
    resumed.say = told.append
    resumed.train(resume_from_checkpoint=True)
    assert any("going on from" in line and "step 2 of" in line for line in told)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_the_best_stays_though_a_clock_makes_it_the_oldest(tmp_path: Path) -> None:
    run_before(tmp_path, ahead_s=1e8)
    trainer = tiny.trainer(
        tmp_path,
        **STEPS,
        save_total_limit=2,
        max_steps=5,
        learning_rate=0.5,  # training makes it worse
        eval_dataset=tiny.texts(4, start=50),
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 5
    assert checkpoints(tmp_path) == [f"checkpoint-{best}", "checkpoint-5"]


def test_an_earlier_runs_checkpoint_is_never_this_runs_best(tmp_path: Path) -> None:
    """The best step was not saved by this run, and its name is another run's."""
    run_before(tmp_path, ahead_s=0)
    scores = iter([0.1, 0.2, 0.9, 0.3])
    trainer = tiny.trainer(
        tmp_path,
        save_strategy="steps",
        save_steps=4,
        max_steps=4,
        eval_dataset=tiny.texts(4, start=50),
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="score",
        compute_metrics=lambda predictions: {"score": next(scores)},
    )
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert trainer.state.best_model_checkpoint is None


def test_without_a_save_strategy_no_weights_are_written(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, max_steps=2).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.json",
        "metrics.jsonl",
        "plan.json",
        "sft_config.json",
    ]


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


@pytest.mark.parametrize("error", [Interrupted(), RunFolderError("full"), ValueError("a defect")])
def test_whatever_stops_a_save_leaves_no_part_of_it(error: BaseException, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, **STEPS, max_steps=3)
    save = trainer.save_model

    def fails_later(folder: str, _internal_call: bool = False) -> None:
        save(folder, _internal_call)
        if trainer.state.global_step == 2:
            raise error

    trainer.save_model = fails_later
    with pytest.raises(type(error)):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-1"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")


def test_what_an_earlier_attempt_left_half_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "_checkpoint-1.partial").mkdir()
    (tmp_path / "_checkpoint-1.partial" / "old").write_text("", encoding="utf-8")
    tiny.trainer(tmp_path, **STEPS, max_steps=1).train()
    assert not (tmp_path / "_checkpoint-1.partial").exists()
    assert not (tmp_path / "checkpoint-1" / "old").exists()


@pytest.mark.parametrize(("number", "told"), [(28, "no space left on the disk"), (27, "size limit"), (13, "denied")])
def test_what_the_system_refuses_becomes_one_error_that_says_what_to_do(number: int, told: str) -> None:
    with pytest.raises(RunFolderError, match=told) as caught, saving.explained("runs/one"):
        raise OSError(number, os.strerror(number))
    assert "runs/one" in str(caught.value)
    assert "another output_dir" in str(caught.value)


def test_an_error_that_is_not_the_systems_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shared tensors"), saving.explained("runs/one"):
        raise RuntimeError("shared tensors")


def fails_at_the_second_step(folder: Path, limit: Callable[[], AbstractContextManager[None]]) -> str:
    """Train with a limit on what can be written from the second checkpoint on; what the error says."""
    trainer = tiny.trainer(folder, model=tiny.make_model(hidden_size=64), **STEPS, max_steps=3)
    save = trainer.save_model

    def limited(path: str, _internal_call: bool = False) -> None:
        with limit() if trainer.state.global_step == 2 else nullcontext():
            save(path, _internal_call)

    trainer.save_model = limited
    with pytest.raises(RunFolderError) as caught:
        trainer.train()
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["checkpoint-1"]
    AutoModelForCausalLM.from_pretrained(folder / "checkpoint-1")
    TrainerState.load_from_json(str(folder / "checkpoint-1" / "trainer_state.json"))
    return str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a file's size are set in Linux' way")
def test_a_file_that_may_not_grow_is_one_clear_error_and_the_checkpoint_before_it_stays(tmp_path: Path) -> None:
    import resource

    @contextmanager
    def limit() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    told = fails_at_the_second_step(tmp_path, limit)
    assert re.search(r"size limit is reached: .*/checkpoint-2 cannot be written", told)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_it_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount")

    @contextmanager
    def limit() -> Iterator[None]:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "other").write_bytes(b"0" * (free - 50_000))
        yield

    try:
        told = fails_at_the_second_step(disk / "run", limit)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert re.search(r"no space left on the disk: .*/checkpoint-2 cannot be written", told)


class PressesCtrlC(Recorder):
    """Sends this process a real SIGINT in an event of the third step."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.event = event
        self.steer = self.press

    def press(self, event: str, state: Any, control: Any) -> None:
        if event == self.event and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX'")
@pytest.mark.parametrize(
    ("event", "step"),
    [("on_step_begin", 2), ("on_pre_optimizer_step", 2), ("on_optimizer_step", 3)],
    ids=["before a step", "before its update", "in the middle of it"],
)
def test_ctrl_c_saves_whole_steps_and_is_raised_again(event: str, step: int, tmp_path: Path) -> None:
    """In the middle of an update it waits until weights, schedule and count agree."""
    handler = signal.getsignal(signal.SIGINT)
    options = {"save_strategy": "steps", "save_steps": 100, "max_steps": 5}
    trainer = tiny.trainer(tmp_path, callbacks=[PressesCtrlC(event)], **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert trainer.state.global_step == step
    assert trainer.lr_scheduler.last_epoch == step
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {step}
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert checkpoints(tmp_path) == [f"checkpoint-{step}"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(saved.get_parameter(name), parameter), name


INTERRUPTED = """
import sys
sys.path.insert(0, {root!r})
from tests.hf import tiny
from tests.run.test_saving import PressesCtrlC

press = PressesCtrlC("on_optimizer_step")
tiny.trainer({folder!r}, callbacks=[press], save_strategy={strategy!r}, save_steps=100, max_steps=5).train()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX'")
def test_ctrl_c_ends_a_script_as_ever_and_saves_nothing_where_nothing_is_to_be_saved(tmp_path: Path) -> None:
    script = INTERRUPTED.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path), strategy="no")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_an_interrupt_right_after_a_checkpoint_writes_no_second_one(tmp_path: Path) -> None:
    class Press(Recorder):
        saved: Any = 0

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.saved += 1
            raise KeyboardInterrupt

    press = Press()
    with pytest.raises(KeyboardInterrupt):
        tiny.trainer(tmp_path, callbacks=[press], **STEPS, max_steps=3).train()
    assert press.saved == 1
    assert checkpoints(tmp_path) == ["checkpoint-1"]


def test_an_interrupt_is_still_an_interrupt_where_saving_fails(tmp_path: Path) -> None:
    class Press(Recorder):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            raise KeyboardInterrupt

    trainer = tiny.trainer(tmp_path, callbacks=[Press()], save_strategy="steps", save_steps=50, max_steps=3)

    def fails(folder: str, _internal_call: bool = False) -> None:
        raise RunFolderError("full")

    trainer.save_model = fails
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(tmp_path) == []


def test_a_folder_is_one_runs_while_it_trains_and_free_afterwards(tmp_path: Path) -> None:
    """Another training, of another trainer, while the first one trains; and each of them after it, twice."""
    other = tiny.trainer(tmp_path, max_steps=1)
    refused: list[str] = []

    class Tries(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            before = (tmp_path / "metrics.jsonl").read_bytes()
            for asked in (None, True, "if_any"):
                with pytest.raises(RunFolderError) as caught:
                    other.train(resume_from_checkpoint=asked)
                refused.append(str(caught.value))
            assert (tmp_path / "metrics.jsonl").read_bytes() == before

    first = tiny.trainer(tmp_path, max_steps=1, callbacks=[Tries()])
    first.train()
    assert len(refused) == 3
    assert all(f"process {os.getpid()}" in text for text in refused)
    first.remove_callback(Tries)
    for trainer in (other, first, other):
        assert trainer.train().global_step == 1
    assert not list(tmp_path.glob(".*"))
