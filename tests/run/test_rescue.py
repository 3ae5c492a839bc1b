"""A run that has trained ends with weights on the disk, and what cannot be saved is found before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sartor.errors import ConfigurationError
from tests.hf import tiny
from tests.hf.recording import Recorder


class Opaque:
    """Nothing that JSON knows."""


def _greedy_with_temperature(trainer: Any) -> None:
    trainer.model.generation_config.do_sample = False
    trainer.model.generation_config.temperature = 0.7


def _share_modules(trainer: Any) -> None:
    trainer.model.model.layers[0].mlp.up_proj = trainer.model.model.layers[0].mlp.gate_proj


def _share_storage(trainer: Any) -> None:
    mlp = trainer.model.model.layers[0].mlp
    mlp.up_proj.weight = torch.nn.Parameter(mlp.gate_proj.weight.detach()[:])


def _set_in_the_configuration(trainer: Any) -> None:
    trainer.model.config.extra = {1, 2}


def _dtype_in_the_configuration(trainer: Any) -> None:
    trainer.model.config.extra = torch.float16


def _object_in_the_generation_settings(trainer: Any) -> None:
    trainer.model.generation_config.extra = Opaque()


def _object_as_chat_template(trainer: Any) -> None:
    trainer.processing_class.chat_template = Opaque()


UNSAVABLE = {
    "generation settings": (_greedy_with_temperature, "generation_config"),
    "shared modules": (_share_modules, "up_proj"),
    "shared storage": (_share_storage, "up_proj"),
    "a set": (_set_in_the_configuration, "model.config"),
    "a dtype": (_dtype_in_the_configuration, "model.config"),
    "an object": (_object_in_the_generation_settings, "generation_config"),
    "a template": (_object_as_chat_template, "tokenizer"),
}


@pytest.mark.parametrize(("spoil", "named"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_cannot_be_saved_is_found_before_the_first_step(
    spoil: Callable[[Any], None], named: str, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    spoil(trainer)
    with tiny.untouched(trainer.model), pytest.raises(ConfigurationError) as caught:
        trainer.train()
    assert named in str(caught.value)
    assert trainer.state.global_step == 0
    assert not any(tmp_path.iterdir())


def test_a_set_in_an_adapters_configuration_is_found_too(tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = tiny.trainer(tmp_path, max_steps=2, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer.model.peft_config["default"].revision = Opaque()
    with pytest.raises(ConfigurationError, match="adapter 'default'"):
        trainer.train()


@pytest.mark.parametrize("tied", [False, True])
def test_what_can_be_saved_is_trained_and_checking_leaves_nothing(tied: bool, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, model=tiny.make_model(tied=tied), max_steps=1)
    before = copy.deepcopy(trainer.model.config.to_dict()), trainer.model.generation_config.to_dict()
    trainer.train()
    assert (trainer.model.config.to_dict(), trainer.model.generation_config.to_dict()) == before
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def require_last_weights(trainer: Any, folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(found[name], value), name


SPOILERS = [(name, spoil) for name, (spoil, _) in UNSAVABLE.items()]


@pytest.mark.parametrize("spoil", [spoil for _, spoil in SPOILERS], ids=[name for name, _ in SPOILERS])
def test_a_model_that_became_unsavable_in_training_leaves_its_weights(
    spoil: Callable[[Any], None], tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    spoil(trainer)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        trainer.save_model()
    assert not isinstance(caught.value, ConfigurationError)
    folder = tmp_path / "rescued-2"
    assert any(str(folder) in note for note in caught.value.__notes__)
    require_last_weights(trainer, folder)


def test_rescued_weights_without_generation_settings_load_as_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sartor")
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    _greedy_with_temperature(trainer)
    with pytest.raises(ValueError, match="do_sample"):
        trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "rescued-2")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    assert str(tmp_path / "rescued-2") in caplog.text
    assert "generation_config" in caplog.text


def test_an_adapter_whose_configuration_became_unsavable_leaves_what_was_trained(tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = tiny.trainer(tmp_path, max_steps=2, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer.train()
    trainer.model.peft_config["default"].revision = Opaque()
    with pytest.raises(TypeError):
        trainer.save_model()
    found = load_file(tmp_path / "rescued-2" / "trained_parameters.safetensors")
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert found.keys() == trained.keys()
    for name, value in trained.items():
        assert torch.equal(found[name], value), name


class Defect(Exception):
    """Of the user's code."""


class Fails(Recorder):
    """Raises in one event, once the last step is done."""

    def __init__(self, event: str, error: BaseException) -> None:
        super().__init__()
        self.event = event
        self.error = error
        self.steer = self.fail

    def fail(self, event: str, state: Any, control: Any) -> None:
        if event == self.event and state.global_step == state.max_steps:
            raise self.error


def _metrics_fail(given: Any) -> dict[str, float]:
    raise Defect


EVALUATED = {"eval_dataset": tiny.texts(2), "compute_metrics": _metrics_fail}
AFTER_THE_LAST_STEP: dict[str, dict[str, Any]] = {
    "on_step_end": {"callbacks": [Fails("on_step_end", Defect())]},
    "on_train_end": {"callbacks": [Fails("on_train_end", Defect())]},
    "on_log": {"callbacks": [Fails("on_log", Defect())]},
    "evaluation at the end": {**EVALUATED, "eval_on_end": True},
    "evaluation of the epoch": {**EVALUATED, "eval_strategy": "steps", "eval_steps": 2},
    "the program's end": {"callbacks": [Fails("on_train_end", SystemExit(3))]},
}


@pytest.mark.parametrize("options", AFTER_THE_LAST_STEP.values(), ids=AFTER_THE_LAST_STEP)
@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_whatever_fails_after_the_last_step_leaves_its_weights_and_is_raised(
    options: dict[str, Any], strategy: str, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2, save_strategy=strategy, save_steps=2, **options)
    with pytest.raises((Defect, SystemExit)) as caught:
        trainer.train()
    written = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(written) == 1, written
    assert written[0].name in ("rescued-2" if strategy == "no" else "checkpoint-2", "rescued-2")
    assert any(str(written[0]) in note for note in caught.value.__notes__)
    require_last_weights(trainer, written[0])


def test_a_card_that_fails_with_the_last_checkpoint_leaves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)

    def fails(**about: Any) -> None:
        raise Defect

    monkeypatch.setattr(trainer, "create_model_card", fails)
    with pytest.raises(Defect):
        trainer.train()
    require_last_weights(trainer, tmp_path / "rescued-2")


def test_a_failure_before_the_last_step_rescues_nothing(tmp_path: Path) -> None:
    class Early(Recorder):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            raise Defect

    with pytest.raises(Defect):
        tiny.trainer(tmp_path, max_steps=2, callbacks=[Early()]).train()
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_an_evaluation_that_failed_at_the_last_step_is_done_anew_from_its_checkpoint(tmp_path: Path) -> None:
    options = {"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": tiny.texts(2)}
    with pytest.raises(Defect):
        tiny.trainer(tmp_path, max_steps=2, compute_metrics=_metrics_fail, **options).train()
    trainer = tiny.trainer(tmp_path, max_steps=2, compute_metrics=lambda given: {"luck": 1.0}, **options)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["eval_luck"] for entry in trainer.state.log_history if "eval_luck" in entry] == [1.0]
