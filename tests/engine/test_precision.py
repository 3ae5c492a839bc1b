"""The compute dtype follows the device; masters lose no update and give the caller's model back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sartor.engine.precision import Masters, autocast, choose_compute_dtype
from sartor.errors import ConfigurationError
from tests.engine.architectures import make

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "has", "options", "expected", "reason"),
    [
        (CPU, True, {}, torch.float32, "neither bf16 nor fp16 is permitted"),
        (CPU, True, {"bf16": True}, torch.bfloat16, "this processor has bf16 instructions"),
        (CPU, False, {"bf16": True}, torch.float32, "although bf16 is permitted"),
        (CPU, True, {"fp16": True}, torch.float32, "although fp16 is permitted"),
        (CPU, False, {"bf16": True, "strict": True}, torch.bfloat16, "strict_precision=True"),
        (CPU, False, {"fp16": True, "strict": True}, torch.float16, "strict_precision=True"),
        (CUDA, (8, 0), {"bf16": True}, torch.bfloat16, "this GPU has it"),
        (CUDA, (9, 0), {"fp16": True}, torch.float16, "this GPU has it"),
        (CUDA, (7, 5), {"bf16": True}, torch.float16, "loss scaling"),
        (CUDA, (7, 0), {"fp16": True}, torch.float16, "fp16"),
        (CUDA, (6, 1), {"fp16": True}, torch.float32, "sm_61"),
        (CUDA, (9, 0), {}, torch.float32, "neither"),
    ],
)
def test_compute_dtype_follows_permission_and_device(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, has: Any, options: Any, expected: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr("sartor.device.cpu_has_bf16", lambda: has)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has)

    dtype, why = choose_compute_dtype(device, **{"bf16": False, "fp16": False, "strict": False, **options})

    assert dtype is expected
    assert reason in why


def test_both_permissions_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        choose_compute_dtype(CPU, bf16=True, fp16=True, strict=False)


def test_autocast_is_on_for_half_dtypes_alone() -> None:
    for dtype, expected in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)):
        with autocast(CPU, dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU, torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def model_in(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(dtype)


def test_updates_smaller_than_a_bf16_step_add_up() -> None:
    model = model_in(torch.bfloat16)
    nn.init.ones_(model.weight)
    masters = Masters(model)
    masters.widen(torch.float32)
    for _ in range(100):
        with torch.no_grad():
            model.weight.add_(0.001)  # bfloat16's step at 1 is 0.0078
    masters.round()

    assert model.weight.dtype == torch.bfloat16
    assert torch.equal(model.weight, torch.full((3, 4), 1.1).bfloat16())


def test_a_second_training_goes_on_from_the_masters() -> None:
    model = model_in(torch.bfloat16)
    masters = Masters(model)
    masters.widen(torch.bfloat16)
    with torch.no_grad():
        model.weight.add_(0.0001)
    wide = model.weight.data.clone()
    masters.round()
    masters.widen(torch.bfloat16)

    assert torch.equal(model.weight, wide)
    assert not torch.equal(wide, wide.bfloat16().float())


def test_what_the_caller_changed_between_two_trainings_wins() -> None:
    model = model_in(torch.bfloat16)
    masters = Masters(model)
    masters.widen(torch.float32)
    masters.round()
    with torch.no_grad():
        model.weight[0, 0] = 3.0
    masters.widen(torch.float32)

    assert float(model.weight.detach()[0, 0]) == 3.0
    masters.round()
    model.float()
    masters.widen(torch.float32)
    masters.round()
    assert model.weight.dtype == torch.float32


def test_rounded_shows_the_arrival_dtype_and_puts_the_masters_back() -> None:
    model = model_in(torch.float16)
    masters = Masters(model)
    masters.widen(torch.float32)
    data = model.weight.data
    model.weight.grad = torch.ones_like(data)

    with pytest.raises(OSError, match="disk"), masters.rounded():  # noqa: PT012
        assert model.weight.dtype == torch.float16
        raise OSError("disk full")

    assert model.weight.data_ptr() == data.data_ptr()
    assert model.weight.grad is not None
    assert masters.arrival_dtypes == {torch.float16}


def test_parameters_keep_their_identity_for_the_optimizer() -> None:
    model = model_in(torch.bfloat16)
    before = list(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masters = Masters(model)
    masters.widen(torch.float32)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()

    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())


@pytest.mark.parametrize(("compute", "expected"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_frozen_weights_are_widened_only_where_float32_is_computed(compute: torch.dtype, expected: torch.dtype) -> None:
    model = model_in(torch.bfloat16)
    model.weight.requires_grad_(False)
    before = model.weight.data.clone()
    masters = Masters(model)

    masters.widen(compute)
    assert model.weight.dtype == expected
    assert model.bias.dtype == torch.float32
    masters.round()

    assert model.weight.dtype == torch.bfloat16
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float8_e4m3fn])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    model = model_in(torch.float32)
    model.weight = nn.Parameter(model.weight.data.to(dtype), requires_grad=False)
    masters = Masters(model)
    masters.widen(torch.float32)

    assert model.weight.dtype == dtype
    assert masters.arrival_dtypes == frozenset()


def test_tied_weights_stay_tied() -> None:
    model = make("llama, tied", dtype=torch.bfloat16)
    masters = Masters(model)
    masters.widen(torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32
    with torch.no_grad():
        model.lm_head.weight.add_(0.5)
    masters.round()

    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_widened_for_now_gives_the_very_same_weights_back() -> None:
    model = model_in(torch.bfloat16)
    data = model.weight.data
    masters = Masters(model)

    with masters.widened_for_now(torch.float32):
        assert model.weight.dtype == torch.float32
    assert model.weight.data_ptr() == data.data_ptr()
    with masters.widened_for_now(torch.bfloat16):
        assert model.weight.dtype == torch.bfloat16
