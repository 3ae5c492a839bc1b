"""Foreseen memory against what torch's allocator counts, one option of a training at a time.

    python -m benchmarks.memory_options              # appended to benchmarks/memory_options.csv
    python -m benchmarks.memory_options --only noise smoothing

`python -m benchmarks.memory` has the product of architectures, precisions, recomputation and optimizers; this has what
may be set beside them: implementations of optimizers, where states live, how many micro-batches, the loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.memory import Cell, Options, compare, show
from sartor.memory.simulate import Work
from sartor.records import EngineSettings, Layout

CSV = Path(__file__).parent / "memory_options.csv"
WORK = Work(document_lengths=(200, 150, 100, 62), num_targets=400)
EVEN = Work(document_lengths=(128, 128), num_targets=254, num_micro_batches=3)
"""Of which each optimizer batch has three: cut as they are given."""
ARCHITECTURES = ("llama, tied", "qwen3_moe")
IMPLEMENTATIONS = (
    "adamw_torch, foreach", "adamw_torch, for-loop", "sgd, fused", "sgd, foreach", "sgd, for-loop", "adagrad, fused",
    "adagrad, foreach", "adagrad, for-loop", "rmsprop, foreach", "rmsprop, for-loop",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A training with one option that is not the default."""

    name: str
    cell: Cell
    work: Work = WORK
    options: Options = field(default_factory=Options)


def variants() -> Iterator[Variant]:
    """All of them, each for several architectures, with and without an adapter, and most for both precisions."""
    for architecture in ARCHITECTURES:
        for precision in ("float32", "bfloat16"):
            for is_lora in (False, True):
                yield from _of(architecture, precision, is_lora)
    for architecture in (*ARCHITECTURES, "gemma3", "gpt2"):
        for is_lora in (False, True):
            yield from _rounded(architecture, is_lora)


def _rounded(architecture: str, is_lora: bool) -> Iterator[Variant]:
    """Weights in bfloat16 in place of float32 masters."""
    plain = Cell(architecture, "bfloat16", False, is_lora, "adamw_torch_fused")
    rounding = Options(EngineSettings(stochastic_rounding=True), plan={"stochastic_rounding": True})
    for recomputes in (False, "cheap", True):
        yield Variant("stochastic rounding", replace(plain, recomputes=recomputes), options=rounding)
    for name in ("adamw_torch", "sgd, fused"):
        yield Variant("stochastic rounding", replace(plain, optimizer=name), options=rounding)
    streamed = replace(rounding, plan={"stochastic_rounding": True, "optimizer_states": "host"})
    yield Variant("stochastic rounding, states on the host", plain, options=streamed)


def _of(architecture: str, precision: str, is_lora: bool) -> Iterator[Variant]:
    plain = Cell(architecture, precision, False, is_lora, "adamw_torch_fused")
    for optimizer in IMPLEMENTATIONS:
        yield Variant(optimizer, Cell(architecture, precision, False, is_lora, optimizer))
    for name in ("adamw_torch_fused", "adamw_torch", "rmsprop"):
        cell = Cell(architecture, precision, False, is_lora, name)
        yield Variant("states on the host", cell, options=Options(plan={"optimizer_states": "host"}))
    three = Options(plan={"micro_batch_tokens": sum(EVEN.document_lengths)})
    for recomputes in (False, "cheap", True):
        yield Variant("three micro-batches", Cell(architecture, precision, recomputes, is_lora, "sgd"), EVEN, three)
    some: dict[str, Any] = {"gradient_checkpointing": True, "recomputed_layers": 2}
    yield Variant("2 of 4 layers recomputed", plain, options=Options(plan=some))
    yield Variant("2 recomputed, others cheaply", plain, options=Options(plan={**some, "recomputes_cheap": True}))
    yield Variant("64 rows of logits", plain, options=Options(plan={"loss_chunk_rows": 64}))
    yield Variant("all rows of logits", plain, options=Options(plan={"loss_chunk_rows": 1 << 20}))
    yield Variant("padded", plain, options=Options(plan={"layout": Layout.PADDED, "attention": "sdpa"}))
    yield Variant("no clipping", plain, options=Options(EngineSettings(max_grad_norm=0.0)))
    yield Variant("label smoothing", plain, options=Options(EngineSettings(label_smoothing=0.1)))
    yield Variant("noise", plain, options=Options(EngineSettings(neftune_noise_alpha=5.0)))
    yield Variant("dft", plain, options=Options(EngineSettings(loss_type="dft")))
    if architecture == "qwen3_moe":
        yield Variant("balance of experts", plain, options=Options(balance_coefficient=0.01))


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's own text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="parts of names; else all")
    parser.add_argument("--csv", type=Path, default=CSV)
    args = parser.parse_args(argv)
    errors = []
    for variant in variants():
        if args.only and not any(part in variant.name for part in args.only):
            continue
        row = compare(variant.cell, work=variant.work, options=variant.options)
        print(f"{variant.name}: ", end="")
        show(row)
        records.append(args.csv, [{"option": variant.name, **row}])
        errors.append(abs(row["error_percent"]))
    print(f"{len(errors)} cells; worst {max(errors):.3f} %")


if __name__ == "__main__":
    main()
