"""A kind of device is a row of facts; what it answers about the machine is what the machine says."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sartor import device
from sartor.device import CPU, CUDA, KINDS, kind_of
from sartor.errors import ConfigurationError

HOST = torch.device("cpu")
X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 {}\nbugs\t\t: bf16_is_no_bug\n\nprocessor\t: 1\nflags\t\t: bf16\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes the place of the system's list of processors."""
    path, read = tmp_path / "cpuinfo", device.cpu_information
    monkeypatch.setattr(device, "cpu_information", lambda: read(str(path)))
    monkeypatch.setattr(device, "cpu_flags", device.cpu_flags.__wrapped__)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16"), {torch.float32, torch.bfloat16}),
        (X86.format("amx_bf16 amx_tile"), {torch.float32, torch.bfloat16}),
        (X86.format("amx_fp16"), {torch.float32, torch.float16}),
        (X86.format("avx512f"), {torch.float32}),
        ("Features\t: fp asimd i8mm bf16\n", {torch.float32, torch.bfloat16}),
        ("Features\t: fp asimd\n", {torch.float32}),
        ("model name\t: nothing else\n", {torch.float32}),
    ],
)
def test_a_processors_fast_dtypes_are_read_off_its_flags(cpuinfo: Path, text: str, expected: set[torch.dtype]) -> None:
    cpuinfo.write_text(text)
    assert device.fast_dtypes(HOST) == expected
    assert device.cpu_has_bf16() is (torch.bfloat16 in expected)
    assert device.cpu_has_amx() is ("amx_bf16" in text)


def test_no_flags_are_no_bf16(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not device.cpu_has_bf16()
    cpuinfo.write_text(X86.format("avx512_bf16"))
    assert device.cpu_has_bf16()
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert not device.cpu_has_bf16()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), {torch.float32, torch.float16, torch.bfloat16}),
        ((8, 0), {torch.float32, torch.float16, torch.bfloat16}),
        ((7, 5), {torch.float32, torch.float16}),
        ((6, 1), {torch.float32}),
    ],
)
def test_a_gpus_fast_dtypes_follow_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: set[torch.dtype]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: capability)
    assert device.fast_dtypes(torch.device("cuda", 1)) == expected
    assert device.architecture(torch.device("cuda", 1)) == f"sm_{capability[0]}{capability[1]}"


def test_a_device_and_its_name_are_of_one_kind() -> None:
    for kind in KINDS.values():
        for named in (kind.name, f"{kind.name}:1", torch.device(kind.name, 1)):
            assert kind_of(named) is kind
    assert CPU.is_host
    assert not CUDA.is_host


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0"])
def test_other_kinds_are_refused_with_those_that_there_are(name: str) -> None:
    assert not device.is_supported(name)
    with pytest.raises(ConfigurationError, match="is not supported: use cpu or cuda"):
        kind_of(name)


def test_the_accelerator_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for is_there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert device.num_devices(CUDA) == (2 if is_there else 0)
        assert device.default_kind() is (CUDA if is_there else CPU)
    assert device.num_devices(CPU) == 1


def test_draws_apart_move_no_generator_outside() -> None:
    before, python = torch.get_rng_state(), random.getstate()
    with device.generators_apart(HOST):
        torch.manual_seed(3)
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_generators_of_devices_that_are_gone_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: restored.append(index))
    device.restore_generators({"cuda": [torch.zeros(16), torch.zeros(16)]})
    device.restore_generators({})
    assert restored == [0]


def test_a_tensor_without_memory_is_not_on_the_host() -> None:
    tensor, hollow = torch.zeros(2), torch.zeros(2, device="meta")
    assert device.is_on_host(tensor)
    assert not device.is_on_host(hollow)
    assert not device.reads_pinned(tensor)
    assert not device.reads_pinned(hollow)


def test_the_processors_memory_is_the_machines_and_its_peak_the_processs() -> None:
    assert device.free_bytes(HOST) is None
    assert device.peak_bytes(HOST) > 50 << 20  # Python with torch takes at least this
    if not torch.cuda.is_initialized():
        assert device.peak_bytes() == device.peak_bytes(HOST)


def test_asking_for_a_kind_and_a_peak_loads_no_torch() -> None:
    asked = "device.kind_of('cuda:0'), device.peak_bytes(), device.cpu_has_bf16()"
    code = f"import sys; from sartor import device; {asked}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
