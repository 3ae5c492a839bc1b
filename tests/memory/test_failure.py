"""A forecast that fails says why, and whether it is a model that cannot be simulated or a defect of Sartor's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from sartor.errors import DefectWarning
from sartor.memory import estimates, simulated_step
from sartor.memory.failure import reason_of
from sartor.memory.simulate import simulate_model
from sartor.run import planning
from tests.hf import tiny

TARGETS: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
TUNERS: dict[str, Any] = {
    "adalora": lambda: peft.AdaLoraConfig(**TARGETS, total_step=10, tinit=1, tfinal=2),
    "c3a": lambda: peft.C3AConfig(**TARGETS, block_size=4),
    "dora": lambda: peft.LoraConfig(**TARGETS, r=2, use_dora=True),
    "fourierft": lambda: peft.FourierFTConfig(**TARGETS, n_frequency=10),
    "hra": lambda: peft.HRAConfig(**TARGETS),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "layer norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "loha": lambda: peft.LoHaConfig(**TARGETS, r=2),
    "lokr": lambda: peft.LoKrConfig(**TARGETS, r=2),
    "miss": lambda: peft.MissConfig(**TARGETS, r=2),
    "oft": lambda: peft.OFTConfig(**TARGETS, r=0, oft_block_size=4),
    "randlora": lambda: peft.RandLoraConfig(**TARGETS, r=2),
    "road": lambda: peft.RoadConfig(**TARGETS, group_size=8),
    "shira": lambda: peft.ShiraConfig(**TARGETS, r=2),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        task_type="CAUSAL_LM", target_modules=["embed_tokens"], token_indices=[4, 5]
    ),
    "vblora": lambda: peft.VBLoRAConfig(**TARGETS, r=2, num_vectors=8, vector_length=8),
    "vera": lambda: peft.VeraConfig(**TARGETS, r=2),
    "waveft": lambda: peft.WaveFTConfig(**TARGETS, n_frequency=10),
}
UNFORESEEN = ("shira", "vblora", "waveft")
"""Sparse tensors, and shapes that depend on what a tensor holds: a later torch may foresee them."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from sartor import SFTTrainer

    lines: list[str] = []
    monkeypatch.setattr(SFTTrainer, "say", lambda self, line: lines.append(line))
    monkeypatch.setattr(planning, "TINY_BYTES", 0)
    return lines


@pytest.mark.filterwarnings("ignore:.*", "error::sartor.errors.SartorWarning")
@pytest.mark.parametrize("tuner", TUNERS)
def test_every_adapter_of_peft_trains_whether_it_can_be_simulated_or_not(
    tuner: str, said: list[str], tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, peft_config=TUNERS[tuner](), max_steps=1, rehearse=True)
    trainer.train()
    assert trainer.state.global_step == 1
    is_planned = bool(trainer.plan.predicted_bytes)
    assert sum("cannot be simulated (" in line and "rules of thumb" in line for line in said) == (not is_planned)
    assert is_planned == ("peak_bytes" in trainer.memory["foreseen"])
    assert is_planned or tuner in UNFORESEEN


class Quantized(nn.Linear):
    """A layer as quantizations make them: what it needs to compute hangs on its weight, which must be the real one."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False)
        self.weight = nn.Parameter(inner.weight.detach(), requires_grad=False)
        self.weight.quant_state = {"blocksize": 64}

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.weight, "quant_state"):
            raise AssertionError("the real weight is needed")
        return super().forward(given)


def test_a_model_whose_layers_need_their_real_weights_is_trained_by_rules_of_thumb(
    said: list[str], tmp_path: Path
) -> None:
    model = tiny.make_model()
    for layer in model.model.layers:
        layer.mlp.down_proj = Quantized(layer.mlp.down_proj)
    trainer = tiny.trainer(tmp_path, model=model, max_steps=1, rehearse=True)
    trainer.train()
    assert sum("cannot be simulated (the real weight is needed)" in line for line in said) == 1
    assert trainer.memory["foreseen"] == {"reason": "the real weight is needed"}


def test_a_model_that_cannot_be_copied_is_trained_by_rules_of_thumb(said: list[str], tmp_path: Path) -> None:
    model = tiny.make_model()
    model.model.lock = threading.Lock()
    tiny.trainer(tmp_path, model=model, max_steps=1, rehearse=True).train()
    assert sum("cannot be simulated (its modules cannot be copied" in line for line in said) == 1


class Forgets(dict[Any, Any]):
    """Keeps nothing, so that what was just put there is missing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


@pytest.mark.parametrize("defect", ["TypeError", "KeyError", "AttributeError"])
def test_a_defect_of_our_own_fails_the_tests_and_not_a_users_run(
    defect: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if defect == "TypeError":
        monkeypatch.setattr(planning, "pass_bytes", None)
    elif defect == "KeyError":
        monkeypatch.setattr(estimates, "simulate_model", lambda *given, **named: simulate_model(*given[:4], Forgets()))
    else:
        monkeypatch.setattr(simulated_step, "kernel_rules", None)
    with pytest.raises(DefectWarning, match=f"defect of Sartor's: {defect}"):
        tiny.trainer(tmp_path / "tests", max_steps=1).train()
    trainer = tiny.trainer(tmp_path / "user", max_steps=1)
    with pytest.warns(DefectWarning, match="report it"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert sum("rules of thumb" in line for line in said) == 1


def test_what_torch_raises_is_laid_to_who_called_it() -> None:
    from sartor.engine.layout import candidates

    def caught(function: Any, *given: Any) -> Exception:
        with pytest.raises(Exception) as found:  # noqa: PT011
            function(*given)
        return found.value

    assert "linear()" in reason_of(caught(lambda: torch.nn.functional.linear(zip, zip)))  # type: ignore[arg-type]
    with pytest.raises(DefectWarning, match=r"sartor\.engine\.layout"):
        reason_of(caught(candidates, None))
