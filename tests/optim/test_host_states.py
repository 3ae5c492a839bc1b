"""States in the host's memory: the same update bit for bit, in pieces, also where memory ends within one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sartor.errors import ConfigurationError
from sartor.optim import host_states, transaction
from sartor.optim.host_states import HostStates, settle_on_device
from sartor.optim.registry import set_implementation
from sartor.optim.transaction import Update
from tests.optim.stepped import assert_equal, values

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "AdamW, for-loop": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=False),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, centered=True, momentum=0.5),
}
SHAPES = ((3, 4), (5,), (2, 6), (4, 4), ())


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "PIECE_BYTES", 80)  # two or three parameters


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_states_on_the_device_bit_for_bit(name: str) -> None:
    plain, streamed = OPTIMIZERS[name](parameters()), OPTIMIZERS[name](parameters())
    update = Update(streamed, HostStates(streamed))
    for step in range(3):
        for optimizer in (plain, streamed):
            give_gradients(optimizer, step)
        plain.step()
        update.step()
        assert_equal(plain, streamed)


def test_a_state_lives_at_one_place_and_passes_through_memory_of_its_own() -> None:
    optimizer = OPTIMIZERS["AdamW, fused"](parameters())
    host = HostStates(optimizer)
    update = Update(optimizer, host)
    give_gradients(optimizer, 0)
    update.step()
    first = {id(p): s["exp_avg"].data_ptr() for p, s in optimizer.state.items() if p.dim()}
    seen: list[Any] = []
    step = optimizer.step

    def looking() -> Any:
        now = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([optimizer.state[p]["exp_avg"].data_ptr() != first[id(p)] for p in now if p.dim()])
        away = [p for p in optimizer.state if not any(p is other for other in now)]
        assert all(optimizer.state[p]["exp_avg"].data_ptr() == first[id(p)] for p in away if p.dim())
        return step()

    optimizer.step = looking  # type: ignore[method-assign]
    give_gradients(optimizer, 1)
    update.step()
    assert len(seen) > 1
    assert all(all(copied) for copied in seen)
    assert first == {id(p): s["exp_avg"].data_ptr() for p, s in optimizer.state.items() if p.dim()}


@pytest.mark.parametrize("fails_at", ["fetch", "step", "put away"])
@pytest.mark.parametrize("num_before", [0, 2])
def test_memory_that_ends_within_a_piece_leaves_it_as_it_was(
    fails_at: str, num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, streamed = OPTIMIZERS["AdamW, for-loop"](parameters()), OPTIMIZERS["AdamW, for-loop"](parameters())
    host = HostStates(streamed)
    update = Update(streamed, host)
    for step in range(num_before):
        for optimizer in (plain, streamed):
            give_gradients(optimizer, step)
        plain.step()
        update.step()
    for optimizer in (plain, streamed):
        give_gradients(optimizer, 9)
    before = copy.deepcopy([value.detach() for value in values(streamed)])
    calls = []

    def failing(real: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                real(*args)
                raise RuntimeError("[enforce fail] can't allocate memory")
            return real(*args)

        return call

    owners: dict[str, tuple[Any, str]] = {
        "fetch": (host_states, "copied"),
        "step": (streamed, "step"),
        "put away": (host, "_home"),
    }
    owner, name = owners[fails_at]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    if fails_at == "fetch" and num_before == 0:
        update.step()  # there is nothing to fetch yet
    else:
        with pytest.raises(RuntimeError, match="allocate"):
            update.step()
        waiting = [p for p in streamed.param_groups[0]["params"] if p not in update._done]
        assert waiting
        now = [value.detach() for value in values(streamed)]
        number = len(SHAPES) - len(waiting)
        for place in range(number, len(SHAPES)):  # those that are not stepped on
            assert torch.equal(now[place], before[place])
        assert not host._homes
        update.step()
    plain.step()
    assert_equal(plain, streamed)


def test_states_are_loaded_where_they_live() -> None:
    optimizer, again = OPTIMIZERS["AdamW, fused"](parameters()), OPTIMIZERS["AdamW, fused"](parameters())
    update = Update(optimizer, HostStates(optimizer))
    for step in range(2):
        give_gradients(optimizer, step)
        update.step()
    with torch.no_grad():
        for mine, theirs in zip(again.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True):
            mine.copy_(theirs)
    HostStates(again).load(copy.deepcopy(optimizer.state_dict()))
    assert_equal(optimizer, again)
    give_gradients(optimizer, 5)
    give_gradients(again, 5)
    update.step()
    Update(again, HostStates(again)).step()
    assert_equal(optimizer, again)


def test_states_that_are_elsewhere_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = OPTIMIZERS["Adagrad"](parameters())
    with monkeypatch.context() as patch:
        patch.setattr(host_states, "HOST", "meta")  # another place than the parameters'
        patch.setattr(host_states, "is_on_host", lambda tensor: tensor.device.type == "meta")
        HostStates(made).settle()
    assert {state["sum"].device.type for parameter, state in made.state.items() if parameter.dim()} == {"meta"}
    optimizer = OPTIMIZERS["Adagrad"](parameters())
    expected = copy.deepcopy(values(optimizer))
    HostStates(optimizer).settle()
    settle_on_device(optimizer)
    assert all(torch.equal(one, other) for one, other in zip(values(optimizer), expected, strict=True))


def test_an_optimizer_whose_step_is_one_whole_is_refused() -> None:
    optimizer = torch.optim.LBFGS(parameters())
    give_gradients(optimizer, 0)
    with pytest.raises(ConfigurationError, match=r"optimizer_states='host'.*LBFGS"):
        Update(optimizer, HostStates(optimizer)).step()


def test_implementations_are_set_and_take_the_same_step_up_to_rounding() -> None:
    expected = OPTIMIZERS["AdamW, for-loop"](parameters())
    give_gradients(expected, 0)
    expected.step()
    for name in ("fused", "foreach", "for-loop"):
        optimizer = torch.optim.AdamW(parameters(), lr=0.1)
        set_implementation(optimizer, name)
        group = optimizer.param_groups[0]
        assert (group["fused"], group["foreach"]) == (name == "fused", name == "foreach")
        assert optimizer.defaults["fused"] is (name == "fused")
        give_gradients(optimizer, 0)
        optimizer.step()
        for mine, theirs in zip(values(optimizer), values(expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    with pytest.raises(ConfigurationError, match="no such RMSprop"):
        set_implementation(torch.optim.RMSprop(parameters()), "fused")
