"""The plan: stated defaults, what was asked for is obeyed, and a file that says the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.device import peak_bytes
from sartor.engine.layout import LayoutChoice, choose_layout
from sartor.engine.traits import ModelTraits, read_traits
from sartor.memory import heap, limits
from sartor.memory import plan as plans
from sartor.memory.limits import available_bytes
from sartor.memory.plan import default_plan, write_plan
from sartor.records import EngineSettings, Layout, Plan
from tests.hf import tiny


@pytest.fixture(scope="module")
def traits_and_layout() -> tuple[ModelTraits, LayoutChoice]:
    model = tiny.make_model()
    traits = read_traits(model)
    return traits, choose_layout(model, traits)


def plan_of(known: tuple[ModelTraits, LayoutChoice], *, device: str = "cpu", **changes: Any) -> Plan:
    settings = EngineSettings(
        **{key: changes.pop(key) for key in list(changes) if key in EngineSettings.__dataclass_fields__}
    )
    facts: dict[str, Any] = {
        "parameter_dtype": "float32",
        "compute_dtype": "float32",
        "compute_reason": "asked",
        "longest_tokens": 100,
        "available_bytes": 1 << 34,
        "num_threads": 2,
    }
    return default_plan(known[0], settings, known[1], device=torch.device(device), **{**facts, **changes})


def test_defaults_are_those_of_the_documentation(traits_and_layout: tuple[ModelTraits, LayoutChoice]) -> None:
    plan = plan_of(traits_and_layout)
    assert plan.micro_batch_tokens == 1024
    assert plan_of(traits_and_layout, compute_dtype="bfloat16").micro_batch_tokens == 2048
    assert plan.gradient_checkpointing is False
    assert plan.layout is Layout.FLAT_DOCUMENTS
    assert plan_of(traits_and_layout, device="cuda").micro_batch_tokens == 16384
    assert set(plan.reasons) == {
        "layout",
        "compute_dtype",
        "micro_batch_tokens",
        "gradient_checkpointing",
        "loss_chunk_rows",
    }


def test_the_longest_document_fits(traits_and_layout: tuple[ModelTraits, LayoutChoice]) -> None:
    plan = plan_of(traits_and_layout, longest_tokens=5000)
    assert plan.micro_batch_tokens == 5000
    assert "longest document" in plan.reasons["micro_batch_tokens"]


def test_layers_are_recomputed_where_their_activations_would_take_too_much(
    traits_and_layout: tuple[ModelTraits, LayoutChoice],
) -> None:
    plan = plan_of(traits_and_layout, available_bytes=1 << 20)
    assert plan.gradient_checkpointing is True
    assert "over a quarter" in plan.reasons["gradient_checkpointing"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("micro_batch_tokens", 7),
        ("gradient_checkpointing", False),
        ("gradient_checkpointing", True),
        ("loss_chunk_rows", 3),
    ],
)
def test_what_is_asked_for_is_obeyed_and_said(
    name: str, value: Any, traits_and_layout: tuple[ModelTraits, LayoutChoice]
) -> None:
    plan = plan_of(traits_and_layout, available_bytes=1 << 20, **{name: value})
    assert getattr(plan, name) == value
    assert plan.reasons[name].startswith("as asked")


def test_a_plan_comes_back_from_its_file(tmp_path: Path, traits_and_layout: tuple[ModelTraits, LayoutChoice]) -> None:
    plan = plan_of(traits_and_layout)
    write_plan(plan, tmp_path / "plan.json")
    assert plans.plan_of(json.loads((tmp_path / "plan.json").read_text())) == plan
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert written["layout"] == "flat, attention per document"
    assert written["reasons"]["compute_dtype"] == "asked"


def test_memory_is_counted_in_bytes() -> None:
    device = torch.device("cpu")
    assert 1 << 20 < available_bytes(device) < 1 << 50
    before = peak_bytes(device)
    assert before > 50 << 20  # Python with torch takes at least this
    block = torch.ones(64 << 18)  # 64 MiB
    assert peak_bytes(device) >= before
    assert block.numel() == 64 << 18


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartor.memory.limits._control_groups", lambda: ((tmp_path, "memory.max", "memory.current"),))
    (tmp_path / "memory.current").write_text("30000\n")
    (tmp_path / "memory.stat").write_text("anon 25000\ninactive_file 2000\nactive_file 345\n")
    (tmp_path / "memory.max").write_text("40000\n")
    account = heap.account()
    unused = 0 if account is None else account.idle_bytes
    # Cached files are given up before anything is killed; the heap's unused memory is the process's own.
    assert available_bytes(torch.device("cpu")) == pytest.approx(12345 + unused, abs=1 << 20)
    assert min(room.free_bytes for room in limits.rooms()) == 12345
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 12345
