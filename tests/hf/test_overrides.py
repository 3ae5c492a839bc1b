"""What a subclass may override is used; everything else of Trainer's is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from sartor import SFTTrainer
from sartor.errors import OverrideError
from sartor.hf.overrides import HONOURED, INSTEAD
from tests.hf import tiny

REFUSED = sorted(
    name
    for name, value in {**vars(Trainer), **INSTEAD}.items()
    if (callable(value) or name in INSTEAD)
    and name not in HONOURED
    and not (name.startswith("__") and name.endswith("__"))
)


def test_the_two_lists_do_not_overlap_and_name_what_exists() -> None:
    assert not HONOURED & set(INSTEAD)
    assert all(hasattr(SFTTrainer, name) for name in HONOURED)
    assert len(REFUSED) > 60  # the whole of Trainer but for what is honoured


@pytest.mark.parametrize("name", REFUSED)
def test_an_override_that_would_not_be_called_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind = type("Mine", (SFTTrainer,), {name: lambda self, *arguments, **keywords: None})
    with pytest.raises(OverrideError, match=rf"Mine overrides .*\b{name}\b") as caught:
        tiny.trainer(tmp_path, kind=kind)
    if name in INSTEAD:
        assert INSTEAD[name] in str(caught.value)


def test_an_override_further_up_is_found_too(tmp_path: Path) -> None:
    class Mixin:
        def training_step(self, *arguments: Any) -> None: ...

    class Mine(Mixin, SFTTrainer): ...

    with pytest.raises(OverrideError, match="training_step"):
        tiny.trainer(tmp_path, kind=Mine)


def test_an_assignment_to_the_instance_is_found_when_training_starts(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    trainer.get_train_dataloader = lambda: []
    with pytest.raises(OverrideError, match="get_train_dataloader"):
        trainer.train()


def test_methods_of_ones_own_are_nobodys_business(tmp_path: Path) -> None:
    class Mine(SFTTrainer):
        def my_report(self) -> str:
            return "fine"

    assert tiny.trainer(tmp_path, kind=Mine).my_report() == "fine"


def test_create_optimizer_and_create_scheduler_are_used(tmp_path: Path) -> None:
    class Mine(SFTTrainer):
        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=0.5, total_iters=100)
            return self.lr_scheduler

    trainer = tiny.trainer(tmp_path, kind=Mine, max_steps=2)
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history[:2]] == [0.25, 0.25]
    assert type(trainer.callback_handler.optimizer) is torch.optim.SGD


def test_an_optimizer_and_a_schedule_that_are_passed_are_used(tmp_path: Path) -> None:
    model = tiny.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    trainer = tiny.trainer(tmp_path, model=model, optimizers=(optimizer, scheduler), max_steps=3)
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history[:3]] == [0.25, 0.125, 0.0625]
    assert trainer.optimizer is optimizer
    trainer.train()  # the schedule is the caller's: it goes on
    assert trainer.lr_scheduler is scheduler


def test_an_optimizer_class_that_is_passed_is_used(tmp_path: Path) -> None:
    model = tiny.make_model()
    expected = {name: parameter.clone() for name, parameter in tiny.make_model().named_parameters()}
    trainer = tiny.trainer(tmp_path, model=model, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.0}), max_steps=1)
    trainer.train()
    assert type(trainer.optimizer) is torch.optim.SGD
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name])


@pytest.mark.parametrize("name", ["adafactor", "sgd", "rmsprop", "adagrad", "adamw_torch", "adamw_torch_fused"])
def test_optimizers_by_name_train(name: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim=name, num_train_epochs=3, learning_rate=0.05)
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_weight_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, weight_decay=0.1, max_steps=1)
    trainer.train()
    decayed, spared = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert all("norm" in names[id(parameter)] for parameter in spared["params"])
    assert not any("norm" in names[id(parameter)] for parameter in decayed["params"])


def test_log_evaluate_save_model_and_card_are_used(tmp_path: Path) -> None:
    called = []

    class Mine(SFTTrainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            called.append("log")
            logs["mine"] = 1.0
            super().log(logs, start_time)

        def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
            called.append("evaluate")
            return {**super().evaluate(*arguments, **keywords), "eval_mine": 2.0}

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            called.append("save_model")
            super().save_model(output_dir, _internal_call)
            Path(str(output_dir), "mine.txt").write_text("mine", encoding="utf-8")

        def create_model_card(self, model_name: str | None = None, **about: Any) -> None:
            called.append(f"card of {model_name}")

    trainer = tiny.trainer(
        tmp_path / "run",
        kind=Mine,
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=tiny.texts(3),
    )
    trainer.train()
    assert {"log", "evaluate", "save_model", "card of run"} <= set(called)
    assert trainer.state.log_history[0]["mine"] == 1.0
    assert (tmp_path / "run" / "checkpoint-2" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_push_to_hub_is_used_when_a_model_is_saved(tmp_path: Path) -> None:
    pushed = []

    class Mine(SFTTrainer):
        def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
            self.hub_model_id = "me/mine"

        def push_to_hub(self, *arguments: Any, **keywords: Any) -> None:
            pushed.append(keywords["commit_message"])

    tiny.trainer(tmp_path, kind=Mine, push_to_hub=True).save_model()
    assert pushed == ["Model save"]
