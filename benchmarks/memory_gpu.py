"""CUDA's rules against a GPU: `python -m benchmarks.memory_gpu`, to benchmarks/memory_gpu.csv.

For each cell a model takes two real optimizer steps on the GPU.  Beside what was foreseen stands what torch's caching
allocator gave out (`allocated`) and took from the device (`reserved`), which attention kernels ran, and what the
context and cuBLAS' workspaces take.  At the end it says what `CUDA_MARGIN` and `CUDA_CONTEXT_BYTES` of
`memory/simulate.py` should be.

    python -m benchmarks.memory_gpu                          # every cell; some minutes
    python -m benchmarks.memory_gpu --models SmolLM2-135M --precisions bfloat16
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory_measure, memory_models, records
from benchmarks.memory import PRECISIONS as DTYPES
from benchmarks.memory import Cell, lora, plan_for, training
from sartor.engine.layout import choose_layout
from sartor.engine.precision import Masters
from sartor.engine.traits import read_traits
from sartor.memory import optimizers
from sartor.memory.prediction import Work
from sartor.memory.simulate import CUDA_CONTEXT_BYTES, CUDA_MARGIN, simulate
from sartor.records import EngineSettings

CSV = Path(__file__).parent / "memory_gpu.csv"
WORK = Work(document_lengths=(1_024, 700, 500, 324), num_targets=2_000)
MODELS = ("SmolLM2-135M", "Qwen3-0.6B", "llama", "gpt2", "gemma3", "phi3", "qwen3_moe")
PRECISIONS = ("bfloat16", "float16", "float32")
_ATTENTION = "_scaled_dot_product_"


def cells(models: Sequence[str], precisions: Sequence[str], names: Sequence[str]) -> Iterator[Cell]:
    """Every combination."""
    kinds = (False, "cheap", True)
    for model, precision, recomputes, is_lora, name in itertools.product(
        models, precisions, kinds, (False, True), names
    ):
        yield Cell(model, precision, recomputes, is_lora, name)


def configuration(name: str) -> Any:
    """Of a published model, or of a small one."""
    return memory_models.published(name) if name in memory_models.PUBLISHED else memory_models.small(name)


def compare(cell: Cell, device: str, work: Work = WORK) -> dict[str, Any]:
    """One row: foreseen, and measured on the GPU."""
    import peft
    from transformers import AutoModelForCausalLM

    arrival = DTYPES[cell.precision][0]
    config = configuration(cell.architecture)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)  # cuBLAS' workspaces, which stay
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, arrival))
        if cell.is_lora:
            model = peft.get_peft_model(model, lora(cell.architecture))
    Masters(model).widen(getattr(torch, cell.precision))
    traits = read_traits(model)
    plan = plan_for(cell, choose_layout(model, traits), num_threads=1, device=device, loss_chunk_rows=1_024)
    inner = model.get_base_model() if cell.is_lora else model
    groups = optimizers.groups_of(model, inner.get_input_embeddings())
    optimizer = optimizers.maker(cell.optimizer, is_cuda=True)(groups)
    engine, stepper = memory_measure.stepper(model, plan, EngineSettings(), optimizer)
    batch = memory_measure.examples(work.document_lengths, work.num_targets, traits.vocabulary_size)
    torch.cuda.reset_peak_memory_stats(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        memory_measure.take_steps(engine, stepper, batch)
    torch.cuda.synchronize(device)
    foreseen = simulate(config, plan, work, training(cell))
    allocated = torch.cuda.max_memory_allocated(device) - before
    reserved = torch.cuda.max_memory_reserved(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "architecture": cell.architecture,
        "precision": cell.precision,
        "recomputes": cell.recomputes,
        "training": "LoRA" if cell.is_lora else "full",
        "optimizer": cell.optimizer,
        "layout": plan.layout.value,
        "tokens": sum(work.document_lengths),
        "attention": "+".join(attention_kernels(event.key for event in profile.key_averages())),
        "peak_at": foreseen.peak.label,
        "foreseen_bytes": foreseen.peak_bytes,
        "allocated_bytes": allocated,
        "reserved_bytes": reserved,
        "error_percent": round(100 * (foreseen.peak_bytes / allocated - 1), 3),
        "unused_percent": round(100 * (reserved / allocated - 1), 3),
    }


def attention_kernels(names: Iterable[str]) -> list[str]:
    """Which of torch's attention kernels ran, from operators' names.

    Example: `aten::_scaled_dot_product_flash_attention` and its backward are `flash`.
    """
    kinds = (name.partition(_ATTENTION)[2].removesuffix("_backward") for name in names if _ATTENTION in name)
    return sorted({"math" if kind == "attention_math" else kind.removesuffix("_attention") for kind in kinds})


def context(device: str) -> dict[str, int]:
    """Bytes that a process takes on a GPU beside tensors: its context, and what a first product of matrices keeps."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    context_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved(device)
    values = torch.ones(256, 256, device=device)
    allocated = torch.cuda.memory_allocated(device)
    _ = values @ values
    del _
    return {"context_bytes": context_bytes, "workspace_bytes": torch.cuda.memory_allocated(device) - allocated}


def advice(rows: Sequence[Mapping[str, Any]], taken: Mapping[str, int]) -> list[str]:
    """What the constants of the simulation should be, in lines.

    The margin covers the worst cell, in what is reserved of the device, rounded up to whole percent; other processes on
    the same GPU make the context look larger than it is.

    Example: foreseen 100, allocated 103, reserved 108: a margin of 8 %.
    """
    low = min(float(row["error_percent"]) for row in rows)
    high = max(float(row["error_percent"]) for row in rows)
    needed = max(float(row["reserved_bytes"]) / float(row["foreseen_bytes"]) - 1 for row in rows)
    overhead = sum(taken.values())
    return [
        f"{len(rows)} cells; foreseen against allocated: {low:+.2f} % to {high:+.2f} %",
        f"CUDA_MARGIN should be {max(0, math.ceil(round(100 * needed, 6))) / 100:.2f} (is {CUDA_MARGIN:.2f}): the "
        f"most that was reserved above what was foreseen is {100 * needed:+.2f} %",
        f"CUDA_CONTEXT_BYTES should be {math.ceil(overhead / (1 << 20))} MiB (is {CUDA_CONTEXT_BYTES >> 20} MiB): "
        + ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in taken.items()),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's own text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--optimizers", nargs="+", default=["adamw_torch_fused", "adamw_torch"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: CUDA's rules stay unmeasured")
    taken = context(args.device)
    rows: list[dict[str, Any]] = []
    for cell in cells(args.models, args.precisions, args.optimizers):
        row = {**compare(cell, args.device), **taken}
        print(
            f"{row['error_percent']:+8.3f} %  reserved {row['unused_percent']:+8.3f} %  {cell.name}; "
            f"{row['attention']}; {row['peak_at']}",
            flush=True,
        )
        records.append(args.csv, [row])
        rows.append(row)
    print("\n".join(advice(rows, taken)))


if __name__ == "__main__":
    main()
