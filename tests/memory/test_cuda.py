"""CUDA's rules: against a GPU where there is one; the arithmetic of their calibration anywhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks import memory_gpu, memory_models
from benchmarks.memory import Cell, plan_of

from sartor.memory.prediction import Component
from sartor.memory.simulate import CUDA_MARGIN, Training, Work, simulate

WORK = Work(document_lengths=(1_024, 700, 324), num_targets=1_500)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "cell",
    [
        Cell("llama", "bfloat16", False, False, "adamw_torch_fused"),
        Cell("llama", "bfloat16", True, True, "adamw_torch_fused"),
        Cell("gpt2", "float16", False, False, "adamw_torch"),
        Cell("qwen3_moe", "bfloat16", False, False, "adamw_torch_fused"),
        Cell("gemma3", "float32", "cheap", False, "sgd"),
    ],
    ids=lambda cell: cell.name,
)
def test_what_the_gpu_gives_out_is_within_the_margin(cell: Cell) -> None:
    row = memory_gpu.compare(cell, "cuda:0", WORK)
    assert abs(row["error_percent"]) < 100 * CUDA_MARGIN, row


@pytest.mark.gpu
@needs_gpu
def test_the_context_is_what_is_set_aside_for_it() -> None:
    assert sum(memory_gpu.context("cuda:0").values()) < 1 << 30


def test_the_advised_margin_covers_the_worst_cell() -> None:
    rows = [
        {"error_percent": -2.9, "foreseen_bytes": 100, "reserved_bytes": 108},
        {"error_percent": 1.0, "foreseen_bytes": 100, "reserved_bytes": 99},
    ]
    found = memory_gpu.advice(rows, {"context_bytes": 450 << 20, "workspace_bytes": 8 << 20})
    assert "-2.90 % to +1.00 %" in found[0]
    assert "CUDA_MARGIN should be 0.08" in found[1]
    assert "should be 458 MiB" in found[2]


def test_attention_kernels_are_named_by_their_operators() -> None:
    names = [
        "aten::mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_backward",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_attention_math",
    ]
    assert memory_gpu.attention_kernels(names) == ["efficient", "flash", "math"]


def test_blocks_on_cuda_are_multiples_of_512_bytes() -> None:
    config = memory_models.small("llama, tied")
    plan = plan_of(config, tokens=200, compute="float32", recomputes=False)
    foreseen = simulate(config, dataclasses.replace(plan, device="cuda"), Work((200,), 150), Training())
    for stretch in foreseen.timeline:
        assert all(size % 512 == 0 for part, size in stretch.components.items() if part is not Component.SCRATCH)
