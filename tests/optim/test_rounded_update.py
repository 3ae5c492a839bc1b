"""Updates of bfloat16 parameters: small ones are kept on average, and the bits are the same however they are taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sartor.errors import ConfigurationError
from sartor.optim import rounded_update, transaction
from sartor.optim.host_states import HostStates
from sartor.optim.rounded_update import RoundedUpdate
from sartor.optim.transaction import Update
from tests.optim.stepped import assert_equal, values

BF16 = torch.bfloat16
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
    "AdamW, for-loop": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=False),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True, momentum=0.5),
}
SHAPES = ((3, 40), (5,), (2, 60), (70, 4), (), (1,))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_update, "BLOCK_VALUES", 16)
    monkeypatch.setattr(transaction, "PIECE_BYTES", 4 * 48)


def parameters(dtype: torch.dtype = BF16) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).bfloat16().to(dtype)) for shape in SHAPES]


def give_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().to(parameter.dtype)


def update_of(optimizer: torch.optim.Optimizer, *, on_host: bool = False, seed: int = 3) -> Update:
    host = HostStates(optimizer) if on_host else None
    update = Update(optimizer, host, RoundedUpdate(optimizer, seed, host))
    update.settle()
    return update


def take(update: Update, number: int) -> None:
    give_gradients(update.optimizer, number)
    update.number = number
    update.step()


# --- what it is for --------------------------------------------------------------------------------------------------


def test_updates_smaller_than_a_bfloat16_step_add_up_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 updates of 0.001 to weights of 1, where bfloat16's step is 0.0078."""
    monkeypatch.setattr(rounded_update, "BLOCK_VALUES", 1 << 12)
    number = 20_000
    rounded, nearest = nn.Parameter(torch.ones(number, dtype=BF16)), nn.Parameter(torch.ones(number, dtype=BF16))
    plain = torch.optim.SGD([nearest], lr=0.001)
    update = update_of(torch.optim.SGD([rounded], lr=0.001))
    for step in range(100):
        rounded.grad = nearest.grad = torch.full((number,), -1.0, dtype=BF16)
        update.number = step
        update.step()
        plain.step()
    assert bool((nearest == 1).all())
    found = rounded.detach().double()
    # Each update moves by 0 or 2^-7, with variance (2^-7 - 0.001) x 0.001: 0.0026 for the sum of 100.
    deviation = (100 * (2**-7 - 0.001) * 0.001) ** 0.5
    assert abs(float(found.mean()) - 1.1) < 5 * deviation / number**0.5
    assert 0.8 * deviation < float(found.std()) < 1.2 * deviation


def test_training_follows_float32_where_nearest_rounding_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW at 1e-4 on a least-squares problem.

    The distance that float32 covers, and what each rounding makes of it.
    """
    monkeypatch.setattr(rounded_update, "BLOCK_VALUES", 1 << 12)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4_000, generator=generator).bfloat16()
    goal = start.float() + 0.05 * torch.randn(4_000, generator=generator)
    weights = {name: nn.Parameter(start.clone()) for name in ("rounded", "nearest")}
    weights["float32"] = nn.Parameter(start.float())
    optimizers = {name: torch.optim.AdamW([one], lr=1e-4, weight_decay=0.0) for name, one in weights.items()}
    update = update_of(optimizers["rounded"])
    for step in range(200):
        for one in weights.values():
            one.grad = (one.detach().float() - goal).to(one.dtype)
        update.number = step
        update.step()
        optimizers["nearest"].step()
        optimizers["float32"].step()
    moved = {name: one.detach().float() - start.float() for name, one in weights.items()}
    direction = moved["float32"] / moved["float32"].square().sum()
    covered = {name: float((one * direction).sum()) for name, one in moved.items()}
    assert covered["rounded"] == pytest.approx(1.0, abs=0.05)  # measured: 1.001
    assert covered["nearest"] < 0.6  # measured: 0.4


# --- how it is taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_torchs_own_in_float32_rounded_to_a_neighbour(name: str) -> None:
    rounded, wide = OPTIMIZERS[name](parameters()), OPTIMIZERS[name](parameters(torch.float32))
    update = update_of(rounded)
    for step in range(3):
        for mine, theirs in zip(rounded.param_groups[0]["params"], wide.param_groups[0]["params"], strict=True):
            with torch.no_grad():
                theirs.copy_(mine)  # each step from the same weights
        take(update, step)
        give_gradients(wide, step)
        wide.step()
        num = len(SHAPES)
        for mine, theirs in zip(values(rounded)[:num], values(wide)[:num], strict=True):
            bits = theirs.detach().reshape(-1).view(torch.int32) & -65_536
            low = bits.view(torch.float32).reshape(theirs.shape)
            high = (bits + 65_536).view(torch.float32).reshape(theirs.shape)
            assert bool(((mine == low) | (mine == high) | ((mine - theirs).abs() < 1e-6)).all())
        for mine, theirs in zip(values(rounded)[num:], values(wide)[num:], strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("piece_bytes", [0, 4 * 100, 1 << 20])
@pytest.mark.parametrize("on_host", [False, True])
def test_bits_are_the_same_whatever_the_pieces_and_wherever_states_live(
    name: str, piece_bytes: int, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded_update, "BLOCK_VALUES", 23)  # a processor's vectors do not end with it
    one, other = OPTIMIZERS[name](parameters()), OPTIMIZERS[name](parameters())
    mine = update_of(one)
    monkeypatch.setattr(transaction, "PIECE_BYTES", piece_bytes)
    theirs = update_of(other, on_host=on_host)
    for step in range(3):
        take(mine, step)
        take(theirs, step)
        assert_equal(one, other)
    assert all(parameter.dtype == BF16 for parameter in one.param_groups[0]["params"])
    assert len(one.state) <= len(SHAPES)


def test_a_large_parameter_is_stepped_on_in_slices_and_never_wide_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = OPTIMIZERS["AdamW, fused"](parameters())
    update = update_of(optimizer)
    seen: list[list[int]] = []
    step = optimizer.step

    def looking() -> Any:
        now = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(p.dtype == torch.float32 for p in now)
        seen.append([p.numel() for p in now])
        return step()

    monkeypatch.setattr(optimizer, "step", looking)
    take(update, 0)
    assert max(max(sizes) for sizes in seen) == 16
    assert max(sum(sizes) for sizes in seen) == 48
    assert sum(sum(sizes) for sizes in seen) == sum(parameter.numel() for parameter in parameters())
    counts = [float(optimizer.state[p]["step"]) for p in optimizer.param_groups[0]["params"]]
    assert counts == [1.0] * len(SHAPES)


def test_update_parameter_block_and_seed_all_have_bits_of_their_own() -> None:
    """The same half-way value everywhere: what goes up is told by the bits alone."""

    def ups(number: int, seed: int) -> list[torch.Tensor]:
        some = [nn.Parameter(torch.ones(64, dtype=BF16)) for _ in range(2)]
        update = update_of(torch.optim.SGD(some, lr=2.0**-8), seed=seed)
        for parameter in some:
            parameter.grad = torch.full((64,), -1.0, dtype=BF16)
        update.number = number
        update.step()
        return [block for parameter in some for block in (parameter.detach() > 1).split(16)]

    found = [*ups(0, 0), *ups(1, 0), *ups(0, 1)]
    assert all(0 < int(block.sum()) < 16 for block in found)
    assert len({tuple(block.tolist()) for block in found}) == len(found)


def test_parameters_of_other_dtypes_beside_them_take_their_plain_step() -> None:
    narrow, wide = parameters()[0], parameters(torch.float32)[3]
    alone = nn.Parameter(wide.detach().clone())
    mixed, plain = OPTIMIZERS["AdamW, fused"]([narrow, wide]), OPTIMIZERS["AdamW, fused"]([alone])
    update = update_of(mixed)
    for step in range(3):
        take(update, step)
        alone.grad = wide.grad
        plain.step()
    torch.testing.assert_close(wide, alone, rtol=1e-6, atol=1e-7)
    assert bool((wide.bfloat16().float() != wide).any())


def test_an_optimizer_that_looks_at_whole_parameters_gets_them_whole() -> None:
    one = torch.optim.Adafactor([parameters()[3]], lr=0.01)
    other = torch.optim.Adafactor([parameters(torch.float32)[3]], lr=0.01)
    update = update_of(one)
    take(update, 0)
    give_gradients(other, 0)
    other.step()
    for mine, theirs in zip(values(one)[1:], values(other)[1:], strict=True):
        torch.testing.assert_close(mine, theirs)
    mine, theirs = values(one)[0].detach(), values(other)[0].detach()
    assert float((mine - theirs).abs().max()) < 2.0**-7 * float(theirs.abs().max())


def test_parameters_that_lie_otherwise_in_memory_go_whole() -> None:
    turned = nn.Parameter(torch.randn(20, 30).bfloat16().t())
    straight = nn.Parameter(turned.detach().contiguous())
    gradient = torch.randn(30, 20).bfloat16()
    for parameter in (turned, straight):
        update = update_of(OPTIMIZERS["AdamW, fused"]([parameter]))
        for step in range(2):
            parameter.grad = gradient.clone()
            update.number = step
            update.step()
    assert not turned.is_contiguous()
    assert torch.equal(turned, straight)  # bits are those of places in the shape's order


# --- memory that ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("fails_at", ["widening", "step", "rounding", "memory of states"])
@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("num_before", [0, 2])
def test_memory_that_ends_within_a_slice_leaves_it_as_it_was_and_changes_no_bit(
    on_host: bool, fails_at: str, call: int, num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "AdamW, for-loop"
    whole, failed = OPTIMIZERS[name](parameters()), OPTIMIZERS[name](parameters())
    never, update = update_of(whole), update_of(failed, on_host=on_host)
    for step in range(num_before):
        take(never, step)
        take(update, step)
    take(never, 7)
    calls = 0

    def failing(real: Any) -> Any:
        def called(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*given)
            if calls == call:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return result

        return called

    with monkeypatch.context() as patched:
        if fails_at == "step":
            patched.setattr(failed, "step", failing(failed.step))
        elif fails_at == "widening":
            patched.setattr(rounded_update, "_wide", failing(rounded_update._wide))
        elif fails_at == "rounding":
            patched.setattr(rounded_update, "round_stochastically_", failing(rounded_update.round_stochastically_))
        else:
            patched.setattr(RoundedUpdate, "_memory", failing(RoundedUpdate._memory))
        if fails_at == "memory of states" and num_before:
            take(update, 7)  # they have memory already
        else:
            with pytest.raises(RuntimeError, match="allocate"):
                take(update, 7)
            known = {id(parameter) for parameter in failed.param_groups[0]["params"]}
            assert {id(parameter) for parameter in failed.state} <= known  # no stand-in is left
            assert len(known) == len(SHAPES)
            assert update.smaller() is not None
            update.step()
    assert_equal(whole, failed)
    take(never, 8)
    take(update, 8)
    assert_equal(whole, failed)


# --- rehearsed, resumed, refused -------------------------------------------------------------------------------------


def test_a_rehearsed_step_makes_states_and_moves_no_weight() -> None:
    optimizer = OPTIMIZERS["AdamW, fused"](parameters())
    update = update_of(optimizer)
    give_gradients(optimizer, 0)
    assert update.needed_bytes() >= 8 * sum(parameter.numel() for parameter in parameters())
    assert update.rehearse()
    for mine, before in zip(optimizer.param_groups[0]["params"], parameters(), strict=True):
        assert torch.equal(mine, before)
    assert len(optimizer.state) == len(SHAPES)
    assert not update.rehearse()  # there are states
    assert update.needed_bytes() == (4 + 4 + 8) * 48 + 12 * 16  # a slice, its gradient and states; a block's bits
    update.forget()
    fresh = OPTIMIZERS["AdamW, fused"](parameters())
    take(update, 0)
    take(update_of(fresh), 0)
    assert_equal(optimizer, fresh)


@pytest.mark.parametrize("on_host", [False, True])
def test_states_that_were_saved_go_on_bit_for_bit(on_host: bool) -> None:
    optimizer = OPTIMIZERS["AdamW, fused"](parameters())
    update = update_of(optimizer)
    for step in range(2):
        take(update, step)
    saved = copy.deepcopy(optimizer.state_dict())
    again = OPTIMIZERS["AdamW, fused"]([nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]])
    HostStates(again).load(saved)
    resumed = update_of(again, on_host=on_host)
    for step in range(2, 4):
        take(update, step)
        take(resumed, step)
    assert_equal(optimizer, again)


def test_states_made_with_the_optimizer_become_float32() -> None:
    optimizer = OPTIMIZERS["Adagrad"](parameters())
    assert {state["sum"].dtype for state in optimizer.state.values()} == {BF16}
    update_of(optimizer)
    assert {state["sum"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_steps_that_cannot_go_in_pieces_are_refused_before_the_first() -> None:
    lbfgs = torch.optim.LBFGS(parameters())
    with pytest.raises(ConfigurationError, match=r"stochastic_rounding=True.*LBFGS"):
        update_of(lbfgs)
    hooked = OPTIMIZERS["SGD"](parameters())
    hooked.register_step_post_hook(lambda *given: None)
    with pytest.raises(ConfigurationError, match="without hooks"):
        update_of(hooked)
