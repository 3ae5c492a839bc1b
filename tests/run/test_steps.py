"""One counter of optimizer steps: what is done, what is being computed, and who reads it."""

import ast
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import sartor
from sartor.run.steps import StepCounter
from tests.hf import tiny
from tests.run.test_out_of_memory import failing

SOURCE = Path(sartor.__file__).parent


def test_a_step_is_current_from_its_beginning_and_done_at_its_end() -> None:
    steps = StepCounter()
    assert (steps.done, steps.current) == (0, 0)
    steps.begin()
    assert (steps.done, steps.current) == (0, 1)
    steps.begin()  # given up, and begun anew
    assert (steps.done, steps.current) == (0, 1)
    steps.finish()
    assert (steps.done, steps.current, steps.num_skipped) == (1, 1, 0)
    steps.begin()
    steps.finish(is_skipped=True)
    assert (steps.done, steps.current, steps.num_skipped) == (2, 2, 1)
    other = StepCounter()
    other.load_state(steps.state())
    assert (other.done, other.current, other.num_skipped) == (2, 2, 1)


def test_trainers_step_is_set_from_the_counter_in_one_place_and_counted_nowhere() -> None:
    """No other file moves a number of steps on."""
    written = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AugAssign | ast.AnnAssign):
                targets = [node.target]
            written += [
                (file.relative_to(SOURCE).as_posix(), ast.unparse(node))
                for target in targets
                if isinstance(target, ast.Attribute) and target.attr in ("global_step", "num_updates", "step_number")
            ]
    assert written == [("hf/trainer_loop.py", "self.trainer.state.global_step = self.steps.done")]


def test_at_every_event_of_a_run_trainer_and_counter_agree(tmp_path: Path) -> None:
    """While a step is being computed, its number is one more than what callbacks see."""
    seen = []

    class Looks(TrainerCallback):
        def _look(self, event: str, state: Any) -> None:
            seen.append((event, state.global_step, trainer.recovery.steps.done, trainer.recovery.steps.current))

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look("begin", state)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look("gradients", state)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look("stepped", state)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look("end", state)

    trainer = tiny.trainer(tmp_path, callbacks=[Looks()], max_steps=2, save_strategy="no")
    trainer.train()
    assert seen == [
        (event, shown + before, done + before, current + before)
        for before in (0, 1)
        for event, shown, done, current in (
            ("begin", 0, 0, 0),
            ("gradients", 0, 0, 1),
            ("stepped", 0, 1, 1),
            ("end", 1, 1, 1),
        )
    ]


def test_memory_that_ends_outside_of_training_is_of_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(tmp_path, eval_dataset=tiny.texts(6, start=40))
    told: list[str] = []
    trainer.say = told.append
    with failing(monkeypatch, "evaluation", {1}):
        trainer.evaluate()
    (line,) = [line for line in told if "memory ran out" in line]
    assert line.startswith("the evaluation of eval data: memory ran out")
    assert "step" not in line
