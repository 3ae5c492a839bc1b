"""Memory that runs out anywhere in a run: nothing is lost, nothing is skipped, the gradient stays the same."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from sartor.engine.step import Engine
from sartor.errors import ForeseenMemoryError, OutOfMemoryError, is_out_of_memory
from sartor.optim.transaction import Update
from sartor.records import Example
from sartor.run.evaluate import evaluate
from sartor.run.loop import OptimizerBatch
from sartor.run.recover import AGAIN_EVERY, NoGuard, Recovery
from sartor.run.sampling import NO_ANSWER
from sartor.run.stepper import EngineStepper, Updater
from tests.hf import tiny
from tests.run.test_stepper import batch_of, engine_of

FINER = 1e-6
"""Largest difference of a weight after a run whose cut became finer; measured: 2e-8 to 6e-8."""

OPTIONS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 5,
    "micro_batch_tokens": 16,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "sample_prompts": ["moon is", "why not"],
    "sample_max_new_tokens": 4,
    "learning_rate": 1e-3,
}


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("injected: out of memory")


class Failing:
    """A function that fails at some of its calls, before or after it does its work."""

    def __init__(self, function: Callable[..., Any], calls: set[int], *, after: bool = False) -> None:
        self.function = function
        self.calls = calls
        self.after = after
        self.count = 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.count += 1
        fails = self.count in self.calls
        if fails and not self.after:
            raise out_of_memory()
        result = self.function(*args, **named)
        if fails:
            raise out_of_memory()
        return result


def run(folder: Path, **options: Any) -> Any:
    """A training of two steps, two evaluations and three rounds of answers."""
    trainer = tiny.trainer(folder, eval_dataset=tiny.texts(6, start=40), **{**OPTIONS, **options})
    trainer.train()
    return trainer


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, phase: str, calls: set[int]) -> Iterator[Failing]:
    """Let a phase of every engine fail at these calls, counted over the run."""
    with monkeypatch.context() as patch:
        if phase == "sampling":
            from sartor.chat.sample import Speaker

            wrapped = Failing(Speaker.generate, calls)
            patch.setattr(Speaker, "generate", lambda self, *args, **named: wrapped(self, *args, **named))
        elif phase == "step":
            wrapped = Failing(Update.step, calls)
            patch.setattr(Update, "step", lambda self: wrapped(self))
        else:
            name = "measure" if phase == "evaluation" else "backward"
            wrapped = Failing(getattr(Engine, name), calls, after=phase == "backward")
            patch.setattr(Engine, name, lambda self, *args, **named: wrapped(self, *args, **named))
        yield wrapped


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return tiny.weights(trainer.model)


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def num_calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often each phase is entered in the undisturbed run."""
    counts = {}
    for phase in ("forward", "backward", "step", "evaluation", "sampling"):
        with pytest.MonkeyPatch.context() as patch, failing(patch, phase, set()) as wrapped:
            run(tmp_path_factory.mktemp(phase))
        counts[phase] = wrapped.count
    return counts


@pytest.mark.parametrize("phase", ["forward", "backward", "step", "evaluation", "sampling"])
def test_a_failure_at_every_call_leaves_the_same_weights_bit_for_bit(
    phase: str, undisturbed: Any, num_calls: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert num_calls[phase] >= 2
    for call in range(1, num_calls[phase] + 1):
        with failing(monkeypatch, phase, {call}):
            trainer = run(tmp_path / str(call))
        assert difference(weights_of(trainer), weights_of(undisturbed)) == 0.0, call
        assert len(trainer.plan.incidents) == 1
        assert trainer.plan.micro_batch_tokens == 16
        assert trainer.state.log_history[-1]["out_of_memory_events"] == 1
        assert [sample.answer for sample in trainer.sample_answers.samples] == [
            sample.answer for sample in undisturbed.sample_answers.samples
        ]
        evaluated = [
            [log["eval_loss"] for log in t.state.log_history if "eval_loss" in log] for t in (trainer, undisturbed)
        ]
        assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_failure_twice_at_every_micro_step_makes_the_cut_finer_and_keeps_the_gradient(
    phase: str, undisturbed: Any, num_calls: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finer = 0
    for call in range(1, num_calls[phase] + 1):
        with failing(monkeypatch, phase, {call, call + 1}):
            trainer = run(tmp_path / str(call), sample_prompts=None, eval_strategy="no")
        assert difference(weights_of(trainer), weights_of(undisturbed)) < FINER, call
        assert len(trainer.plan.incidents) == 2
        finer += trainer.plan.micro_batch_tokens < 16
        written = json.loads((tmp_path / str(call) / "plan.json").read_text())
        assert written["micro_batch_tokens"] == trainer.plan.micro_batch_tokens
        assert written["incidents"] == list(trainer.plan.incidents)
    assert finer >= num_calls[phase] // 2  # the others were documents alone, whose activations are recomputed


def test_dropout_draws_the_same_when_a_batch_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(folder: str) -> Any:
        return run(tmp_path / folder, model=tiny.make_model(attention_dropout=0.5), sample_prompts=None)

    expected = weights_of(once("whole"))
    for call in (2, 5):
        with failing(monkeypatch, "forward", {call}):
            assert difference(weights_of(once(str(call))), expected) == 0.0


def test_a_users_own_loss_is_redone_from_the_start_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    def once(folder: str, loss: Callable[..., Any]) -> Any:
        return tiny.trainer(tmp_path / folder, compute_loss_func=loss, max_steps=2, gradient_accumulation_steps=2)

    expected = once("whole", mean)
    expected.train()
    for call in range(1, 5):
        trainer = once(str(call), Failing(mean, {call}))
        trainer.train()
        assert difference(weights_of(trainer), weights_of(expected)) == 0.0
        assert len(trainer.plan.incidents) == 1


# --- what is done, in order ----------------------------------------------------------------------------------------


def recovery_of(engine: Engine, **options: Any) -> tuple[Recovery, list[str]]:
    heard: list[str] = []
    recovery = Recovery(engine, tell=lambda incident, plan: heard.append(incident.remedy), **options)
    recovery._tried_again_at = 0  # nothing is tried_again in these tests
    recovery.steps.begin()
    return recovery, heard


def test_down_to_one_document_then_recomputation_then_the_loss_then_an_error() -> None:
    engine = engine_of(tiny.make_model(), tokens=32)
    recovery, heard = recovery_of(engine)
    optimizer = torch.optim.SGD(engine.model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    updater = Updater(optimizer, schedule, engine, 0.0, steps_on_metrics=False, recovery=recovery)
    batch = batch_of(*([5, 6, 7, 8] for _ in range(8)))
    engine.backward = Failing(engine.backward, set(range(100)))  # type: ignore[method-assign]
    with engine.running(), pytest.raises(OutOfMemoryError, match="nothing is left that would need less"):
        EngineStepper(engine, updater).gradients(batch)
    assert [text.split(" in place")[0] for text in heard[:5]] == [
        "at most 16 tokens at once",
        "at most 8 tokens at once",
        "at most 4 tokens at once",
        "activations that are cheap to compute again are recomputed from here on",
        "the activations of every layer are recomputed from here on",
    ]
    assert len(heard) == 5  # four tokens have no logits to spare
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_recomputation_that_begins_in_the_middle_of_a_run_changes_no_gradient() -> None:
    found = []
    for fails in (set(), {1}, {1, 2}):
        engine = engine_of(tiny.make_model(), tokens=4)
        recovery, heard = recovery_of(engine)
        optimizer = torch.optim.SGD(engine.model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        updater = Updater(optimizer, schedule, engine, 0.0, steps_on_metrics=False, recovery=recovery)
        with engine.running():
            engine.backward = Failing(engine.backward, fails)  # type: ignore[method-assign]
            EngineStepper(engine, updater).gradients(batch_of([5, 6, 7, 8], [9, 10, 11, 12]))
            assert engine.model.is_activation_checkpointing is bool(fails)
        assert not engine.model.is_activation_checkpointing  # as it was
        found.append({name: p.grad.clone() for name, p in engine.model.named_parameters()})
        assert len(heard) == len(fails)
    assert all(difference(found[0], other) < FINER for other in found[1:])


def test_a_packed_block_is_cut_into_its_documents() -> None:
    found = []
    for tokens in (64, 4):
        engine = engine_of(tiny.make_model(), tokens=tokens, neftune_noise_alpha=5.0)
        optimizer = torch.optim.SGD(engine.model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        updater = Updater(optimizer, schedule, engine, 0.0, steps_on_metrics=False)
        block = Example([5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 11], (4, 3))
        with engine.running():
            result = EngineStepper(engine, updater).gradients(OptimizerBatch((block,), (3,), (1,)))
        assert result.num_micro_batches == (1 if tokens == 64 else 2)
        assert result.sums.num_targets == 5
        found.append({name: p.grad.clone() for name, p in engine.model.named_parameters()})
    assert difference(*found) < FINER  # the noise too is each document's own


def test_one_failure_in_a_hundred_steps_is_forgiven() -> None:
    engine = engine_of(tiny.make_model())
    recovery = Recovery(engine)
    recovery.steps.done = 7
    assert recovery.try_again() is not None
    recovery.steps.done = 6 + AGAIN_EVERY
    assert recovery.try_again() is None
    recovery.steps.done = 7 + AGAIN_EVERY
    assert recovery.try_again() is not None


def test_other_errors_are_raised_as_they_are_and_memorys_are_known() -> None:
    engine = engine_of(tiny.make_model())
    with pytest.raises(RuntimeError, match="shapes"):
        Recovery(engine).retry("forward", _shapes, lambda: "x")
    known = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    assert is_out_of_memory(RuntimeError(known))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(out_of_memory())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def _shapes() -> None:
    raise RuntimeError("shapes do not match")


def test_an_evaluation_goes_on_finer_and_training_keeps_its_cut() -> None:
    documents = [Example([5, 6, 7, 8], [5, 6, 7, 8]), Example([9, 10], [9, 10]), Example([11, 12, 13], [11, 12, 13])]
    engine = engine_of(tiny.make_model(), tokens=64)
    with engine.running():
        expected = evaluate(engine, [documents], name="eval data")
        recovery, heard = recovery_of(engine)
        engine.measure = Failing(engine.measure, {1})  # type: ignore[method-assign]
        found = evaluate(engine, [documents], name="eval data", recovery=recovery)
    assert heard == ["at most 4 tokens at once in evaluations"]
    assert found.loss == pytest.approx(expected.loss, abs=FINER)
    assert (found.num_tokens, found.sums.num_targets) == (9, 6)
    assert engine.plan.micro_batch_tokens == 64
    assert engine.plan.evaluation_tokens is not None


# --- the optimizer's step --------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=True),
    "loop": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=False, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
}


def stepped(kind: str, *, num_steps: int, patch: Callable[[Update, int], None] = lambda update, step: None) -> Any:
    """Weights and optimizer state after some steps on made-up gradients."""
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(5)]
    optimizer = OPTIMIZERS[kind](parameters)
    update = Update(optimizer)
    for step in range(num_steps):
        for parameter in parameters:
            parameter.grad = torch.randn(3, 4)
        patch(update, step)
        for _ in range(3):
            try:
                update.step()
                break
            except torch.OutOfMemoryError:
                update.smaller()
        gradients = [parameter.grad for parameter in parameters]
        assert all(gradient is not None for gradient in gradients)
    return [parameter.detach().clone() for parameter in parameters], optimizer.state_dict()["state"]


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("piece", [1, 3])
def test_a_step_that_fails_halfway_reaches_each_parameter_once(kind: str, at: int, piece: int) -> None:
    """The real step runs for a piece, and then memory ends: the piece must be as it was before."""

    def patch(update: Update, step: int) -> None:
        update._piece_bytes = 100  # two parameters each
        if step == at and not (kind == "fused" and step > 0):  # then nothing is allocated, and one call does it all
            inner = update.optimizer.step
            update.optimizer.step = Failing(inner, {piece}, after=True)  # type: ignore[method-assign]

    found, state = stepped(kind, num_steps=3, patch=patch)
    expected, expected_state = stepped(kind, num_steps=3)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for number, values in expected_state.items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(state[number][name]), torch.as_tensor(value)), name


def test_a_fused_step_allocates_nothing_once_its_states_exist() -> None:
    """Why it may be taken at once: there is nothing in it that could run out of memory."""
    from torch.profiler import ProfilerActivity, profile

    parameters = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(3)]
    update = Update(OPTIMIZERS["fused"](parameters))
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(64, 64)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            update.step()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in seen.key_averages())
    assert allocated < 1024  # numbers, such as the step that is added; a parameter has 16 KiB


class Little(NoGuard):
    """So much is left for what is called so, for certain."""

    def __init__(self, num_bytes: int, name: str) -> None:
        self.num_bytes, self.name = num_bytes, name

    def allocate(self, num_bytes: int, what: str) -> None:
        if self.name in what and num_bytes > self.num_bytes:
            raise ForeseenMemoryError(f"{what} need {num_bytes}")


@pytest.mark.parametrize(("kind", "each"), [("fused", 8), ("loop", 12), ("sgd", 4), ("adafactor", 0)])
def test_an_optimizers_states_are_foreseen_before_they_are_made(kind: str, each: int) -> None:
    """No exception comes before the kernel kills: the first step is refused, and names what keeps less."""
    engine = engine_of(tiny.make_model())
    parameters = list(engine.model.parameters())
    num_values, largest = sum(p.numel() for p in parameters), max(p.nbytes for p in parameters)
    for num_bytes, fits in ((each * num_values + largest, True), (each * num_values + largest - 1, False)):
        optimizer = OPTIMIZERS[kind](parameters)
        recovery = Recovery(engine, guard=Little(num_bytes, "states"))
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        updater = Updater(optimizer, schedule, engine, 0.0, steps_on_metrics=False, recovery=recovery)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        before = [parameter.detach().clone() for parameter in parameters]
        if fits:
            updater.update()
            assert not any(map(torch.equal, parameters, before))
            state = [value for values in optimizer.state.values() for value in values.values() if value.dim() > 0]
            if each:
                assert sum(value.nbytes for value in state) == each * num_values
        else:
            with pytest.raises(OutOfMemoryError, match="optim='adafactor'"):
                updater.update()
            assert all(map(torch.equal, parameters, before))


class HasLittle(TrainerCallback):
    """The first that hears that training begins: little is left for answers."""

    def __init__(self, trainer: Any, num_bytes: int) -> None:
        self.trainer, self.num_bytes = trainer, num_bytes

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.trainer.recovery.guard = Little(self.num_bytes, "answers")


def test_answers_that_would_not_fit_are_asked_for_fewer_at_a_time(undisturbed: Any, tmp_path: Path) -> None:
    """And where one does not fit, the table has a hole, and the run goes on."""
    for num_bytes, answered in ((60_000, True), (1_000, False)):
        trainer = tiny.trainer(tmp_path / str(num_bytes), eval_dataset=tiny.texts(6, start=40), **OPTIONS)
        told: list[str] = []
        trainer.say = told.append

        trainer.callback_handler.callbacks.insert(0, HasLittle(trainer, num_bytes))
        trainer.train()
        answers = [sample.answer for sample in trainer.sample_answers.samples]
        if answered:
            assert answers == [sample.answer for sample in undisturbed.sample_answers.samples]
            assert any("1 of sample_prompts at a time" in line for line in told)
        else:
            assert set(answers) == {NO_ANSWER}
        assert difference(weights_of(trainer), weights_of(undisturbed)) == 0.0


def test_a_foreign_optimizer_that_fails_within_its_step_ends_the_run() -> None:
    class Foreign(torch.optim.SGD):
        pass

    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = Foreign([parameter], lr=0.1)
    optimizer.step = Failing(optimizer.step, {1}, after=True)  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError, match="within the step of Foreign"):
        Update(optimizer).step()


@pytest.mark.parametrize(("phase", "step"), [("backward", 1), ("evaluation", 2)])
def test_a_run_that_memory_ends_saves_its_last_whole_step_and_goes_on_from_it(
    phase: str, step: int, num_calls: dict[str, int], undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever needs less is tried before; afterwards, where there is memory again, not a step is missing."""
    saving = {"save_strategy": "steps", "save_steps": 100}
    trainer = tiny.trainer(tmp_path, eval_dataset=tiny.texts(6, start=40), **{**OPTIONS, **saving})
    told: list[str] = []
    trainer.say = told.append
    with failing(monkeypatch, phase, set(range(num_calls[phase], 1000))), pytest.raises(OutOfMemoryError) as caught:
        trainer.train()
    assert "nothing is left that would need less" in str(caught.value)
    assert f"The run can go on from {tmp_path / f'checkpoint-{step}'}, where there is more memory." in str(caught.value)
    assert "finite" not in str(caught.value)
    assert any(line.startswith(f"memory ran out: checkpoint-{step} is saved") for line in told)
    again = tiny.trainer(tmp_path, eval_dataset=tiny.texts(6, start=40), **{**OPTIONS, **saving})
    again.train(resume_from_checkpoint=True)
    assert difference(weights_of(again), weights_of(undisturbed)) < 1e-6
    steps = [entry["step"] for entry in again.state.log_history if "eval_loss" in entry]
    assert steps == [entry["step"] for entry in undisturbed.state.log_history if "eval_loss" in entry]


def test_an_evaluation_that_memory_ended_is_done_anew_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sets; the first had been evaluated, and stood in the log, when memory ended in the second."""
    sets = {"near": tiny.texts(3, start=40), "far": tiny.texts(3, start=50)}
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 100}
    whole = tiny.trainer(tmp_path / "whole", eval_dataset=sets, **options)
    with failing(monkeypatch, "evaluation", set()) as calls:
        whole.train()
    ended = tiny.trainer(tmp_path / "ended", eval_dataset=sets, **options)
    with failing(monkeypatch, "evaluation", set(range(calls.count, 1000))), pytest.raises(OutOfMemoryError):
        ended.train()
    assert "eval_near_loss" not in ended.state.log_history[-1]
    again = tiny.trainer(tmp_path / "ended", eval_dataset=sets, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.log_history[-1]["out_of_memory_events"] > 0
    keys = [[{*entry} - {"out_of_memory_events"} for entry in run.state.log_history] for run in (again, whole)]
    assert keys[0] == keys[1]
    lines = [
        (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name in ("ended", "whole")
    ]
    assert len(lines[0]) == len(lines[1])


def test_memory_that_ends_within_an_update_saves_nothing_that_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise out_of_memory()

    trainer = tiny.trainer(
        tmp_path, optimizer_cls_and_kwargs=(Foreign, {"lr": 0.1}), save_strategy="steps", save_steps=100, max_steps=2
    )
    with pytest.raises(OutOfMemoryError, match=r"within the step of Foreign.* No checkpoint was saved before it"):
        trainer.train()
    assert not list(tmp_path.glob("*checkpoint*"))


def test_generators_of_every_kind_are_restored() -> None:
    engine = engine_of(tiny.make_model(), tokens=64)
    drawn: list[tuple[float, float, float]] = []
    recovery, _ = recovery_of(engine)
    optimizer = torch.optim.SGD(engine.model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    updater = Updater(optimizer, schedule, engine, 0.0, steps_on_metrics=False, recovery=recovery)

    def draw(function: Callable[..., Any]) -> Callable[..., Any]:
        def drawing(*args: Any, **named: Any) -> Any:
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return function(*args, **named)

        return drawing

    with engine.running():
        engine.backward = draw(Failing(engine.backward, {1}))  # type: ignore[method-assign]
        EngineStepper(engine, updater).gradients(batch_of([5, 6, 7, 8], [9, 10]))
    assert drawn[0] == drawn[1]


# --- a real limit ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_one_long_row_in_the_third_epoch_does_not_end_a_run(tmp_path: Path) -> None:
    """8,000 tokens under a limit that their activations do not fit into, nor the mask of a padded batch of two."""
    ended = with_a_long_row(tmp_path, "sartor")
    assert ended["error"] is None
    assert ended["steps"] == 9
    assert ended["checkpointing"]
    assert len(ended["incidents"]) >= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_the_same_row_under_the_same_limit_ends_a_fixed_trainer(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    ended = with_a_long_row(tmp_path, "trl")
    assert "can't allocate memory" in ended["error"]
    assert ended["steps"] == 7  # two epochs of three steps, and one step


def with_a_long_row(folder: Path, library: str) -> dict[str, Any]:
    """How a training ended; see long_row.py."""
    command = [sys.executable, "-m", "tests.run.long_row", str(folder), library, "280"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    ended: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return ended
