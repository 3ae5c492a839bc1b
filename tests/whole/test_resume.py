"""A run that is resumed is the run that was never stopped.

Weights, optimizer, records, bit for bit; or it says why not.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from sartor import SFTTrainer
from sartor.errors import ConfigurationError, DataError, DiskFullError, ModelError, RunFolderError
from sartor.memory import limits
from sartor.report.metrics import MetricsFile
from sartor.run import checkpoint, snapshot, state, tensor_file
from sartor.run import resume as resuming
from sartor.run.model_files import ModelFiles
from tests import kill, kill_calls
from tests.hf import tiny

EVERY = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3}


pytestmark = pytest.mark.usefixtures("one_thread")


class StopsAt(TrainerCallback):
    """Ends a run in the middle of a step, as a defect would."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step = step
        self.error = error or ZeroDivisionError("stopped")

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            raise self.error


def dropping(**changes: Any) -> Any:
    return tiny.make_model(attention_dropout=0.2, **changes)


def heard(trainer: SFTTrainer) -> list[str]:
    """What the trainer says from now on."""
    told: list[str] = []
    trainer.say = told.append  # type: ignore[method-assign]
    return told


def stop(folder: Path, step: int, *, model: Any = None, callbacks: Any = (), **options: Any) -> None:
    """A run that ends at `step`, with checkpoints before it."""
    trainer = tiny.trainer(folder, model=model or dropping(), callbacks=[*callbacks, StopsAt(step)], **options)
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(kill.TIMING)} for line in lines]


def same_run(one: SFTTrainer, other: SFTTrainer) -> None:
    """Assert that weights, optimizer and metrics are equal."""
    for (name, mine), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert records(Path(one.args.output_dir)) == records(Path(other.args.output_dir))
    assert kill.digest_of(one, Path(one.args.output_dir)) == kill.digest_of(other, Path(other.args.output_dir))


# --- equal, whatever stops it ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_runs_killed_at_random_equal_runs_never_killed() -> None:
    """In an own process: a fork of one with threads is not safe."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", "--n", "4", "--seed", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "8 of 8 runs equal the run that was never killed" in done.stdout


def test_killed_at_system_calls_a_run_goes_on_from_the_newest_that_is_whole() -> None:
    """At some of them, evenly spread; `python -m tests.kill --every-call` kills at each."""
    if (reason := kill_calls.why_not()) is not None:
        pytest.skip(reason)
    done = kill_calls.run_preloaded(
        ["-m", "tests.kill", "--every-call", "runs", "--at-most", "6"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("name", sorted(kill.SCENARIOS))
def test_a_stopped_run_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    """In the same process, with other generators' states by then, and the model made anew."""
    whole = kill.SCENARIOS[name](tmp_path / "whole")
    whole.train()
    stopped = kill.SCENARIOS[name](tmp_path / "stopped")
    stopped.add_callback(StopsAt(7 if name == "lora" else 5))  # all others in the middle of an epoch
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    torch.rand(5)
    resumed = kill.SCENARIOS[name](tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    same_run(whole, resumed)


def test_a_checkpoint_holds_each_master_once(tmp_path: Path) -> None:
    """Beside the weights they are saved as, or in them where these are the same."""
    for dtype in (torch.float32, torch.bfloat16):
        trainer = tiny.trainer(tmp_path / str(dtype), model=tiny.make_model(dtype=dtype), **EVERY, max_steps=2)
        trainer.train()
        content = checkpoint.read_state(tmp_path / str(dtype) / "checkpoint-2")
        names = {name for name, _ in trainer.model.named_parameters()}
        own, saved = set(content["parameters"]), set(content["saved_parameters"])
        assert own | saved == names
        assert not own & saved
        assert (own if dtype == torch.bfloat16 else saved) == names
        assert {tensor.dtype for tensor in content["parameters"].values()} <= {torch.float32}


def test_an_adapters_checkpoint_holds_no_frozen_weight(tmp_path: Path) -> None:
    trainer = kill.lora(tmp_path)
    trainer.train()
    content = checkpoint.read_state(tmp_path / "checkpoint-5")
    assert all("lora_" in name for name in (*content["parameters"], *content["saved_parameters"]))
    assert not (tmp_path / "checkpoint-5" / "model.safetensors").exists()


def test_the_scale_of_float16_goes_on(tmp_path: Path) -> None:
    """It grows after so many good steps, and is halved after a bad one: both are counted."""
    options = {"max_steps": 4, **EVERY, "fp16": True, "strict_precision": True}
    stop(tmp_path, 3, model=tiny.make_model(), **options)
    saved = checkpoint.read_state(tmp_path / "checkpoint-2")["updater"]["scaler"]
    assert saved["_growth_tracker"] > 0 or saved["scale"] != 65536.0
    scales: list[tuple[float, int]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            updater = trainer.train_loop.checkpoints._updater  # type: ignore[union-attr]
            scales.append((updater._scaler.get_scale(), updater._scaler._get_growth_tracker()))

    trainer = tiny.trainer(tmp_path, callbacks=[Look()], **options)
    trainer.train(resume_from_checkpoint=True)
    assert scales[0] == (saved["scale"], saved["_growth_tracker"])


def test_callbacks_go_on_counting(tmp_path: Path) -> None:
    """Early stopping stops at the step at which it would have stopped."""
    options = {
        **EVERY, "max_steps": 12, "eval_dataset": tiny.texts(2), "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "luck", "greater_is_better": True,
    }  # fmt: skip

    def luck(given: Any) -> dict[str, float]:
        return {"luck": 1.0}  # never better than the first time

    def trainer(folder: Path, *more: Any) -> SFTTrainer:
        return tiny.trainer(folder, callbacks=[EarlyStoppingCallback(3), *more], compute_metrics=luck, **options)

    whole = trainer(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 8
    stopped = trainer(tmp_path / "stopped", StopsAt(6))
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    resumed = trainer(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert resumed.state.best_global_step == 2
    assert Path(resumed.state.best_model_checkpoint or "").name == "checkpoint-2"
    same_run(whole, resumed)


def test_a_run_that_had_ended_ends_again_without_a_step(tmp_path: Path) -> None:
    whole = tiny.trainer(tmp_path, model=dropping(), **EVERY, max_steps=4)
    whole.train()
    before = records(tmp_path)
    again = tiny.trainer(tmp_path, model=dropping(), **EVERY, max_steps=4)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    assert records(tmp_path) == before
    for mine, theirs in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Presses(TrainerCallback):
    """Sends this process a signal during the n-th call of an event."""

    def __init__(self, event: str, call: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = call, number
        setattr(self, event, self._press)

    def _press(self, *given: Any, **more: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX'")
@pytest.mark.parametrize(
    ("event", "call"),
    [
        ("on_step_begin", 4),
        ("on_optimizer_step", 3),
        ("on_step_end", 3),
        ("on_prediction_step", 3),
        ("on_prediction_step", 8),
        ("on_epoch_end", 1),
    ],
)
def test_interrupted_anywhere_it_goes_on_as_if_it_had_not_been(event: str, call: int, tmp_path: Path) -> None:
    """Also in the midst of an evaluation of several sets, whose first lines are in the metrics already."""
    number = signal.SIGTERM if call == 3 else signal.SIGINT
    whole = kill.full(tmp_path / "whole")
    whole.train()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    stopped = kill.full(tmp_path / "stopped")
    stopped.add_callback(Presses(event, call, number))
    told = heard(stopped)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        stopped.train()
    if number == signal.SIGTERM:
        assert caught.value.code == 143  # type: ignore[union-attr]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert "resume_from_checkpoint=True" in told[-1]
    step = stopped.state.global_step
    checkpoint.verify(tmp_path / "stopped" / f"checkpoint-{step}")
    resumed = kill.full(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    same_run(whole, resumed)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_closed_terminal_does_not_end_a_run(tmp_path: Path) -> None:
    whole = kill.full(tmp_path / "whole")
    whole.train()
    hung_up = kill.full(tmp_path / "hung up")
    hung_up.add_callback(Presses("on_step_begin", 3, signal.SIGHUP))
    hung_up.train()
    same_run(whole, hung_up)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX'")
def test_a_second_interrupt_stops_at_once_and_saves_nothing(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, **{**EVERY, "save_steps": 100}, max_steps=5)
    trainer.add_callback(Presses("on_optimizer_step", 2))
    trainer.add_callback(Presses("on_optimizer_step", 2))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not list(tmp_path.glob("*checkpoint*"))


def test_a_defect_in_the_middle_of_an_update_saves_nothing(tmp_path: Path) -> None:
    """Weights and counts don't agree there, whoever raises."""

    class Raises(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    trainer = tiny.trainer(tmp_path, callbacks=[Raises()], **EVERY, max_steps=5)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]


# --- frozen plan ----------------------------------------------------------------------------------------------------


def test_the_plan_of_the_checkpoint_holds_whatever_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed in another folder, on a machine with less memory, more threads and another wish for the cut."""
    whole = tiny.trainer(tmp_path / "whole", model=dropping(), **EVERY, max_steps=6, micro_batch_tokens=9)
    whole.train()
    stop(tmp_path / "one", 5, **EVERY, max_steps=6, micro_batch_tokens=9)
    monkeypatch.setattr(limits, "available_bytes", lambda which: 1)
    monkeypatch.setattr("sartor.run.setup.available_bytes", lambda which: 1, raising=False)
    torch.set_num_threads(2)
    other = tiny.trainer(tmp_path / "other", model=dropping(), **EVERY, max_steps=6)
    told = heard(other)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert other.plan is not None
    assert whole.plan is not None
    assert replace(other.plan, reasons={}) == replace(whole.plan, reasons={})
    assert any("micro_batch_tokens changed, and the plan of the checkpoint is kept" in line for line in told)
    assert any("with 1 threads as before" in line for line in told)
    same_run(whole, other)
    assert (tmp_path / "one" / "checkpoint-4").exists()


# --- which checkpoint -----------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    whole = tiny.trainer(tmp_path / "whole", model=dropping(), **EVERY, max_steps=8)
    whole.train()
    stop(tmp_path / "run", 7, **EVERY, max_steps=8)
    damaged = tmp_path / "run" / "checkpoint-6" / "run_state" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "run" / "_checkpoint-8.partial").mkdir()
    resumed = tiny.trainer(tmp_path / "run", model=dropping(), **EVERY, max_steps=8)
    told = heard(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert any("_checkpoint-8.partial was being written" in line for line in told)
    assert any("checkpoint-6 is damaged: run_state/state.safetensors has" in line for line in told)
    assert any("going on from" in line and "step 4 of 8" in line for line in told)
    assert (tmp_path / "run" / "_checkpoint-6.damaged").exists()
    same_run(whole, resumed)


def test_one_that_was_named_is_used_and_later_ones_are_kept_by_another_name(tmp_path: Path) -> None:
    whole = tiny.trainer(tmp_path, model=dropping(), **EVERY, max_steps=6)
    whole.train()
    again = tiny.trainer(tmp_path, model=dropping(), **EVERY, max_steps=6)
    told = heard(again)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert sum("is of a later step than checkpoint-2" in line for line in told) == 2
    assert (tmp_path / "_checkpoint-6.abandoned").exists()
    same_run(whole, again)


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        (True, RunFolderError, "there is no checkpoint in .* to go on from: start anew with .*if_any"),
        ("nowhere", RunFolderError, "there is no such folder"),
    ],
)
def test_nothing_to_go_on_from_is_a_clear_error(asked: Any, kind: type[Exception], told: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=told):
        tiny.trainer(tmp_path).train(resume_from_checkpoint=asked)


def test_none_that_is_whole_is_an_error_with_each_reason_or_a_new_start(tmp_path: Path) -> None:
    options = {**EVERY, "save_steps": 2, "max_steps": 4}
    whole = tiny.trainer(tmp_path, model=dropping(), **options)
    whole.train()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "manifest.json").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"checkpoint-4: manifest.json cannot be read.*checkpoint-2: manifest"):
        tiny.trainer(tmp_path, **options).train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-4").exists()
    before = records(tmp_path)
    again = tiny.trainer(tmp_path, model=dropping(), **options)
    again.train(resume_from_checkpoint="if_any")
    assert records(tmp_path) == before
    assert (tmp_path / "_checkpoint-4.damaged").exists()


def test_one_of_the_model_alone_is_not_gone_on_from_but_can_be_started_from(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, **EVERY, max_steps=2, save_only_model=True).train()
    alone = tmp_path / "checkpoint-2"
    assert not (alone / "run_state").exists()
    checkpoint.verify(alone)
    with pytest.raises(ConfigurationError, match=r"holds the model alone.*model="):
        tiny.trainer(tmp_path, **EVERY).train(resume_from_checkpoint=str(alone))
    with pytest.raises(RunFolderError, match="holds the model alone"):
        tiny.trainer(tmp_path, **EVERY).train(resume_from_checkpoint=True)
    tiny.trainer(tmp_path / "new", model=str(alone), max_steps=1).train()


@pytest.mark.parametrize("adapter", [False, True])
def test_trls_checkpoints_can_be_started_from_and_their_pickles_are_refused(adapter: bool, tmp_path: Path) -> None:
    import trl
    from peft import LoraConfig

    model = tiny.make_model()
    model.save_pretrained(tmp_path / "base")
    tiny.make_tokenizer().save_pretrained(tmp_path / "base")
    theirs = trl.SFTTrainer(
        str(tmp_path / "base"),
        trl.SFTConfig(
            str(tmp_path / "trl"),
            max_steps=2,
            save_steps=2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            learning_rate=1e-2,
            pad_token="<unk>",
        ),
        train_dataset=tiny.dataset(),
        peft_config=LoraConfig(r=2, task_type="CAUSAL_LM") if adapter else None,
    )
    theirs.train()
    folder = tmp_path / "trl" / "checkpoint-2"
    assert (folder / "optimizer.pt").exists()
    ours = tiny.trainer(tmp_path / "trl", max_steps=4)
    for asked in (str(folder), True):
        with pytest.raises(ConfigurationError, match=r"optimizer\.pt.*pickle.*any code.*started from: model="):
            ours.train(resume_from_checkpoint=asked)
    started = tiny.trainer(tmp_path / "ours", model=str(folder), max_steps=1, pad_token="<unk>")
    names = {name: p for name, p in theirs.model.named_parameters() if not adapter or "lora_" in name}
    for name, parameter in started.model.named_parameters():
        if name in names:
            assert torch.equal(parameter.float(), names[name].float()), name
    assert started.train().global_step == 1


def test_transformers_checkpoints_too(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = "<unk>"
    row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1]}
    options: dict[str, Any] = {"max_steps": 2, "save_steps": 2, "report_to": "none", "disable_tqdm": True}
    theirs = Trainer(
        tiny.make_model(),
        TrainingArguments(str(tmp_path / "theirs"), use_cpu=True, **options),
        train_dataset=[row] * 4,  # type: ignore[arg-type]
        processing_class=tokenizer,
    )
    theirs.train()
    folder = tmp_path / "theirs" / "checkpoint-2"
    with pytest.raises(ConfigurationError, match=r"written by transformers or trl.*optimizer\.pt.*pickle.*model="):
        tiny.trainer(tmp_path / "theirs", max_steps=4).train(resume_from_checkpoint=True)
    ours = tiny.trainer(tmp_path / "ours", model=str(folder), max_steps=1, processing_class=None)
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine.float(), other), name
    assert ours.train().global_step == 1


# --- differences ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    torch.set_num_threads(1)
    stop(folder, 3, **EVERY, max_steps=6)
    return folder


def retemplated() -> Any:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return tokenizer


def with_another_token() -> Any:
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(["another"])
    return tokenizer


def adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, task_type="CAUSAL_LM")


def refrozen() -> Any:
    model = dropping()
    model.lm_head.weight.requires_grad_(False)
    return model


DIFFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "rate": ("learning_rate is 0.02, and was 0.01", {"learning_rate": 0.02}),
    "batch": ("per_device_train_batch_size is 1, and was 2", {"per_device_train_batch_size": 1}),
    "accumulation": ("gradient_accumulation_steps is 3, and was 1", {"gradient_accumulation_steps": 3}),
    "seed": ("seed is 7, and was 42", {"seed": 7}),
    "order": ("train_sampling_strategy is 'sequential'", {"train_sampling_strategy": "sequential"}),
    "length": ("max_steps is 9, and was 6", {"max_steps": 9}),
    "clipping": ("max_grad_norm is 0.5, and was 1.0", {"max_grad_norm": 0.5}),
    "one row": ("data: the prepared rows", {"rows": tiny.dataset([*tiny.texts(9), {"text": "the moon"}])}),
    "order of rows": ("data: the prepared rows", {"rows": tiny.dataset(tiny.texts()[::-1])}),
    "template": ("template: the chat template", {"processing_class": retemplated()}),
    "model": ("model: the base model", {"model": tiny.make_model(attention_dropout=0.1)}),
    "frozen": ("model: the base model", {"model": refrozen()}),
    "tokenizer": ("tokenizer: the tokenizer", {"processing_class": with_another_token()}),
    "precision": ("bf16 is True, and was False", {"bf16": True}),
    "adapter": ("adapter: the adapter's configuration", {"peft_config": adapter()}),
    "loss": (
        "loss: whether an own loss",
        {"compute_loss_func": lambda out, labels, num_items_in_batch: out.logits.sum()},
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_that_changes_what_is_learned_is_named(name: str, stopped: Path) -> None:
    told, changes = DIFFERENCES[name]
    trainer = tiny.trainer(stopped, **{"model": dropping(), **EVERY, "max_steps": 6, **changes})
    with pytest.raises(ConfigurationError) as caught:
        trainer.train(resume_from_checkpoint=True)
    assert told in str(caught.value)
    assert f"accept_changes=['{told.split()[0].rstrip(':')}'" in str(caught.value)


def test_what_is_only_recorded_may_differ(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    changes = {"logging_steps": 1, "save_steps": 5, "run_name": "other", "eval_strategy": "steps", "eval_steps": 2}
    trainer = tiny.trainer(
        folder, **{"model": dropping(), **EVERY, "max_steps": 6, **changes, "eval_dataset": tiny.texts(2)},
        accept_changes=["eval_data"],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in records(folder)] == [3, 4, 4, 5, 6, 6, 6]


def test_an_accepted_rate_is_the_one_that_is_used(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    options = {**EVERY, "logging_steps": 1, "max_steps": 10, "learning_rate": 0.02}
    accepted = ["learning_rate", "max_steps"]
    trainer = tiny.trainer(folder, model=dropping(), **options, accept_changes=accepted)
    told = heard(trainer)
    assert trainer.train(resume_from_checkpoint=True).global_step == 10
    assert "accepted: learning_rate is 0.02, and was 0.01" in told
    rates = [row["learning_rate"] for row in records(folder) if "learning_rate" in row]
    assert rates == pytest.approx([0.02 * (10 - step) / 10 for step in range(2, 10)])
    moments = [float(entry["step"]) for entry in trainer.optimizer.state.values()]
    assert set(moments) == {10.0}  # they went on


def test_an_accepted_precision_is_the_one_that_is_computed_in(stopped: Path, tmp_path: Path) -> None:
    """The frozen plan was made for the other one."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    changes = {"bf16": True, "strict_precision": True}
    trainer = tiny.trainer(folder, model=dropping(), **EVERY, max_steps=6, **changes, accept_changes=list(changes))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.plan is not None
    assert trainer.plan.compute_dtype == "bfloat16"


def test_epochs_that_max_steps_overrules_may_differ(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    trainer = tiny.trainer(folder, model=dropping(), **EVERY, max_steps=6, num_train_epochs=9)
    assert trainer.train(resume_from_checkpoint=True).global_step == 6


def test_other_versions_are_told_and_other_threads_are_not_used(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    now = resuming.versions()
    monkeypatch.setattr(resuming, "versions", lambda: {**now, "torch": "9.9"})
    trainer = tiny.trainer(folder, model=dropping(), **EVERY, max_steps=6)
    told = heard(trainer)
    torch.set_num_threads(2)
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        torch.set_num_threads(1)
    assert f"other versions than in the checkpoint, which may change last bits: torch 9.9 (was {now['torch']})" in told
    assert "computing with 1 threads as before, in place of 2." in told


def test_another_optimizer_that_was_accepted_starts_anew(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    trainer = tiny.trainer(folder, model=dropping(), **EVERY, max_steps=6, optim="sgd", accept_changes=["optim"])
    told = heard(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert any("starts anew" in line for line in told)


def test_other_trained_parameters_are_named_even_if_the_model_was_accepted(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    trainer = tiny.trainer(folder, model=refrozen(), **EVERY, max_steps=6, accept_changes=["model"])
    with pytest.raises(ModelError, match=r"other trained parameters than the model: lm_head\.weight"):
        trainer.train(resume_from_checkpoint=True)


def test_a_name_to_accept_that_is_none_is_an_error(stopped: Path) -> None:
    trainer = tiny.trainer(stopped, model=dropping(), **EVERY, max_steps=6, accept_changes=["lerning_rate"])
    with pytest.raises(ConfigurationError, match="lerning_rate is neither an option nor one of data"):
        trainer.train(resume_from_checkpoint=True)


def test_a_stream_that_gives_other_rows_is_noticed(tmp_path: Path) -> None:
    def rows(first: int) -> Any:
        return tiny.stream(tiny.texts(9, start=first))

    stop(tmp_path, 3, rows=rows(0), **EVERY, max_steps=6)
    with pytest.raises(DataError, match="gives other rows in epoch 0 than before the run was interrupted"):
        tiny.trainer(tmp_path, model=dropping(), rows=rows(1), **EVERY, max_steps=6).train(resume_from_checkpoint=True)


def test_metrics_that_were_lost_are_told_and_those_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    stop(tmp_path / "run", 5, **EVERY, max_steps=6)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    elsewhere = tiny.trainer(tmp_path / "other", model=dropping(), **EVERY, max_steps=6)
    with pytest.raises(RunFolderError, match="holds the metrics of another run"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    trainer = tiny.trainer(tmp_path / "run", model=dropping(), **EVERY, max_steps=6)
    told = heard(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert any("what was there is lost" in line for line in told)


# --- disks, optimizers, background ----------------------------------------------------------------------------------


def test_too_little_room_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    options = {**EVERY, "max_steps": 40, "save_total_limit": 3}
    with pytest.raises(DiskFullError, match=r"need about .* \(4 of .* at a time\)"):
        tiny.trainer(tmp_path, model=tiny.make_model(hidden_size=64), **options).train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_disk_that_fills_up_stops_the_run_or_is_passed_over(
    policy: str, background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_state

    def full(folder: Path, content: Any) -> int:
        if "checkpoint-4" in folder.name:
            raise OSError(28, os.strerror(28))
        return write(folder, content)

    monkeypatch.setattr(checkpoint, "write_state", full)
    options = {**EVERY, "max_steps": 7, "on_full_disk": policy, "save_in_background": background}
    trainer = tiny.trainer(tmp_path, model=dropping(), **options)
    told = heard(trainer)
    if policy == "stop":
        with pytest.raises(DiskFullError, match=r"no space left on the disk: .*checkpoint-4 cannot be written"):
            trainer.train()
        assert 4 <= trainer.state.global_step <= 6
        assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    else:
        trainer.train()
        assert any("The run goes on without it" in line for line in told)
        assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == [f"checkpoint-{n}" for n in (2, 6, 7)]
    checkpoint.verify(tmp_path / "checkpoint-2")


class Remembers(torch.optim.SGD):
    """An optimizer whose state only pickle could write."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["why"] = object()


def test_an_optimizer_that_only_pickle_could_save_is_refused_by_name_after_its_first_step(tmp_path: Path) -> None:
    own = (Remembers, {"lr": 0.1})
    trainer = tiny.trainer(tmp_path, optimizer_cls_and_kwargs=own, **{**EVERY, "save_steps": 100}, max_steps=5)
    with pytest.raises(ConfigurationError, match=r"the state of the optimizer Remembers has a builtins\.object"):
        trainer.train()
    assert trainer.state.global_step == 1
    tiny.trainer(tmp_path, optimizer_cls_and_kwargs=own, **EVERY, save_only_model=True, max_steps=2).train()


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_any_optimizer_of_torch_goes_on(optim: str, tmp_path: Path) -> None:
    options = {**EVERY, "max_steps": 5, "optim": optim, "lr_scheduler_type": "cosine", "warmup_steps": 2}
    whole = tiny.trainer(tmp_path / "whole", model=dropping(), **options)
    whole.train()
    stop(tmp_path / "stopped", 3, **options)
    resumed = tiny.trainer(tmp_path / "stopped", model=dropping(), **options)
    resumed.train(resume_from_checkpoint=True)
    same_run(whole, resumed)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is written is what was there when it was begun."""
    reached = threading.Event()
    write = checkpoint.write_state

    def slow(folder: Path, content: Any) -> int:
        assert reached.wait(60)
        return write(folder, content)

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                assert not (tmp_path / "one" / "checkpoint-2").exists()
                reached.set()

    monkeypatch.setattr(checkpoint, "write_state", slow)
    tiny.trainer(tmp_path / "one", model=dropping(), callbacks=[Steps()], **EVERY, max_steps=3).train()
    monkeypatch.undo()
    options = {**EVERY, "save_in_background": False}
    tiny.trainer(tmp_path / "two", model=dropping(), **options, max_steps=3).train()
    states_equal(tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")


def states_equal(one: Path, other: Path) -> None:
    """Assert that two checkpoints hold the same run, but for when it was."""
    contents = [checkpoint.read_state(folder) for folder in (one, other)]
    for content in contents:
        content["train_loop"]["seconds"] = content["metrics_writer"] = content["settings"] = None
        content["metrics_bytes"] = content["plan"] = None
    packed = [state.pack(content, "run") for content in contents]
    assert packed[0][0] == packed[1][0]
    assert all(torch.equal(packed[0][1][name], packed[1][1][name]) for name in packed[0][1])
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("memory", ["enough", "none"])
@pytest.mark.parametrize("slow", ["model", "state"])
def test_an_update_waits_for_what_is_written_from_the_live_tensors(
    slow: str, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the thread is slower than a step, with and without memory for a copy: the bits of the step are written."""
    monkeypatch.setattr(snapshot, "SMALL_BYTES", 0)
    place, name = (ModelFiles, "write_weights") if slow == "model" else (tensor_file, "_pieces")
    action = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *given: (time.sleep(0.003), action(*given))[1])
    if memory == "none":
        monkeypatch.setattr("sartor.run.checkpoints.available_bytes", lambda which: 10)
    trainer = tiny.trainer(tmp_path / "one", model=dropping(), **EVERY, max_steps=6)
    told = heard(trainer)
    trainer.train()
    monkeypatch.undo()
    options = {**EVERY, "save_in_background": False}
    tiny.trainer(tmp_path / "two", model=dropping(), **options, max_steps=6).train()
    for step in (2, 4, 6):
        states_equal(tmp_path / "one" / f"checkpoint-{step}", tmp_path / "two" / f"checkpoint-{step}")
    waits = sum("training waits for a checkpoint to be written" in line for line in told)
    assert waits == 1 if (memory, slow) == ("none", "state") else waits <= (memory == "none")
    assert re.search(r"checkpoints saved: 3; training has waited \d\.\d\d s for them, \d\.\d\d s of it", told[-1])
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("saving_runtime" in line for line in lines) >= 1


def test_a_callback_may_change_weights_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a copy is taken before it is called, and what is saved is what the step before it left."""
    monkeypatch.setattr(snapshot, "SMALL_BYTES", 0)
    pieces = tensor_file._pieces
    monkeypatch.setattr(tensor_file, "_pieces", lambda *given: (time.sleep(0.003), pieces(*given))[1])

    class Shrinks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            for parameter in model.parameters():
                parameter.data.mul_(0.9)

    for name, background_too in (("one", True), ("two", False)):
        options = {**EVERY, "save_in_background": background_too, "max_steps": 4}
        tiny.trainer(tmp_path / name, model=dropping(), callbacks=[Shrinks()], **options).train()
    states_equal(tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")


def test_a_callback_that_looks_at_a_checkpoint_finds_it_whole(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looks(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            checkpoint.verify(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            seen.append(state.global_step)

    tiny.trainer(tmp_path, callbacks=[Looks()], **EVERY, max_steps=4).train()
    assert seen == [2, 4]


def test_a_run_ends_only_when_its_last_checkpoint_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = checkpoint.publish

    def late(partial: Path, target: Path) -> None:
        time.sleep(0.2)
        publish(partial, target)

    monkeypatch.setattr(checkpoint, "publish", late)
    tiny.trainer(tmp_path, **EVERY, max_steps=2).train()
    checkpoint.verify(tmp_path / "checkpoint-2")


def protect(folder: Path) -> Callable[[], None]:
    """Make a folder one that can be read and not written; returns what ends that."""
    if os.geteuid() != 0:
        os.chmod(folder, 0o555)
        return lambda: os.chmod(folder, 0o755)
    for options in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):  # root may write anywhere else
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
            pytest.skip("this machine lets nobody mount")
    return lambda: subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(os.name == "nt", reason="folders are protected in POSIX' ways")
def test_a_folder_that_may_not_be_written_is_one_clear_error_before_the_first_step(tmp_path: Path) -> None:
    stop(tmp_path, 3, **EVERY, max_steps=4)
    before = sorted(path.name for path in tmp_path.iterdir())
    end = protect(tmp_path)
    try:
        for resume in (True, None):
            with pytest.raises(RunFolderError, match=r"cannot be written: .*another output_dir, or see to its permiss"):
                tiny.trainer(tmp_path, **EVERY, max_steps=4).train(resume_from_checkpoint=resume)
    finally:
        end()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="folders are protected in POSIX' ways")
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_folder_that_becomes_read_only_stops_the_run_and_leaves_the_checkpoint_before(
    policy: str, tmp_path: Path
) -> None:
    """Whatever `on_full_disk` says: that is about room."""
    ends: list[Callable[[], None]] = []

    class Protects(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                trainer.train_loop.checkpoints.wait()  # type: ignore[union-attr]
                ends.append(protect(tmp_path))

    trainer = tiny.trainer(tmp_path, callbacks=[Protects()], **EVERY, max_steps=8, on_full_disk=policy)
    try:
        with pytest.raises(
            RunFolderError, match=r"cannot write .*README.md: .* Choose an output_dir that you may write to"
        ):
            trainer.train()
    finally:
        for end in ends:
            end()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    checkpoint.verify(tmp_path / "checkpoint-2")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_disk_that_is_really_full_for_a_while(policy: str, tmp_path: Path) -> None:
    """All of a run's files are on it.  What went on says so, and in the end no line of its metrics is missing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount")

    class Fills(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                trainer.train_loop.checkpoints.wait()  # type: ignore[union-attr]
                with (disk / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(b"0" * 512):
                        pass
            elif state.global_step == 7:
                (disk / "other").unlink()

    options = {**EVERY, "logging_steps": 1, "max_steps": 9}
    whole = tiny.trainer(tmp_path / "whole", model=dropping(), **options)
    whole.train()
    trainer = tiny.trainer(disk / "run", model=dropping(), **options, on_full_disk=policy)
    trainer.add_callback(Fills())
    told = heard(trainer)
    try:
        if policy == "stop":
            with pytest.raises(DiskFullError):
                trainer.train()
            assert [path.name for path in (disk / "run").glob("*checkpoint*")] == ["checkpoint-2"]
        else:
            trainer.train()
            assert records(disk / "run") == records(tmp_path / "whole")
            left = {path.name for path in (disk / "run").glob("*checkpoint*")}
            assert left == {f"checkpoint-{step}" for step in (2, 8, 9)}
            assert sum("The run goes on without it" in line for line in told) == 2
        checkpoint.verify(disk / "run" / "checkpoint-2")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_lines_of_metrics_that_have_no_room_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, and no checkpoint is saved without them."""
    write = MetricsFile.write

    def refuses(self: MetricsFile, record: Any) -> None:
        if 3 <= trainer.state.global_step <= 5:
            raise DiskFullError("cannot write metrics.jsonl: No space left on device.")
        write(self, record)

    options = {**EVERY, "logging_steps": 1, "max_steps": 7}
    whole = tiny.trainer(tmp_path / "whole", model=dropping(), **options)
    whole.train()
    monkeypatch.setattr(MetricsFile, "write", refuses)
    trainer = tiny.trainer(tmp_path / "run", model=dropping(), **options, on_full_disk="continue")
    told = heard(trainer)
    trainer.train()
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert sum("its metrics wait for room" in line for line in told) == 1
    assert any("2 lines of metrics.jsonl wait for room, and no checkpoint can be saved" in line for line in told)
    assert {path.name for path in (tmp_path / "run").glob("*checkpoint*")} == {f"checkpoint-{n}" for n in (2, 6, 7)}
    trainer = tiny.trainer(tmp_path / "stops", **options)
    with pytest.raises(DiskFullError, match="cannot write metrics"):
        trainer.train()


def test_too_little_room_for_one_checkpoint_is_told_before_any_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.trainer(tmp_path, model=tiny.make_model(hidden_size=64), **EVERY, max_steps=6)
    usage = shutil.disk_usage(tmp_path)

    class Fills(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
                trainer.save_model = None  # type: ignore[assignment,method-assign]

    trainer.add_callback(Fills())
    with pytest.raises(DiskFullError, match=r"checkpoint-4 cannot be written\. It needs .* MB, and 0\.1 MB are free"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]


def test_every_option_is_part_of_the_mathematics_unless_it_is_listed() -> None:
    """What is listed exists, and nothing is listed twice."""
    from sartor.config import resumption
    from sartor.config.table import OPTIONS

    groups: list[Callable[[], frozenset[str]]] = [
        lambda: resumption.RECORDS_ONLY, lambda: resumption.MEMORY, lambda: resumption.EVALUATION_TIMES
    ]  # fmt: skip
    names = [name for group in groups for name in group()]
    assert len(names) == len(set(names))
    assert set(names) <= set(OPTIONS)
    assert {"learning_rate", "seed", "max_length", "packing", "bf16"}.isdisjoint(names)
