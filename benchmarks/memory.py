"""Foreseen memory against memory that others count: `python -m benchmarks.memory`.

For each cell (architecture x precision x recomputation x full/LoRA x optimizer) a small model takes two real optimizer
steps while torch's profiler counts what c10's allocator gives out; the prediction is made from the configuration alone.

    python -m benchmarks.memory                      # all cells, appended to benchmarks/memory.csv
    python -m benchmarks.memory --architectures llama gpt2
    python -m benchmarks.memory --malloc             # against every malloc of a process of its own, to
                                                     # benchmarks/memory_malloc.csv
    python -m benchmarks.memory --published          # seconds and bytes of five published models
    python -m benchmarks.memory --real --weights F   # real steps of the sizes of published models on this machine
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import malloc_count, memory_measure, memory_models, records
from sartor.engine import attention
from sartor.engine.layout import LayoutChoice, choose_layout
from sartor.engine.precision import Masters
from sartor.engine.traits import read_traits
from sartor.memory import optimizers
from sartor.memory.prediction import Component, Prediction
from sartor.memory.simulate import Known, Training, Work, meta_model_of, simulate, simulate_model
from sartor.records import EngineSettings, Example, Layout, Plan

CSV = Path(__file__).parent / "memory.csv"
MALLOC_CSV = Path(__file__).parent / "memory_malloc.csv"
MALLOC_ARCHITECTURES = ("llama, tied", "qwen3", "gemma3", "gpt2", "qwen3_moe", "lfm2")
WORK = Work(document_lengths=(400, 300, 200, 124), num_targets=800)
SHORT_WORK = Work(document_lengths=(200, 150, 100, 62), num_targets=400)
"""Of the product of everything: few enough tokens for updates to be the worst moment in many cells."""
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd, fused", "adagrad, fused", "rmsprop", "adafactor")
"""Every `optim` that needs no further package, as a run takes it on a CPU."""
PUBLISHED_WORK = Work((1_024,) * 8, num_targets=8_000)
PRECISIONS = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float16": ("float32", "float16"),
}
"""Name to (dtype that the model arrives in, compute dtype); what is trained is float32 in either."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    architecture: str
    precision: str
    recomputes: bool | str
    """False, True, or "cheap": only cheap operations."""
    is_lora: bool
    optimizer: str
    """Its name, and behind a comma its implementation where it is not the name's own."""

    @property
    def optim(self) -> tuple[str, str | None]:
        """Name and implementation of the optimizer.

        Example: "sgd, fused" is sgd, taken by torch's fused kernel.
        """
        name, _, implementation = self.optimizer.partition(", ")
        return name, implementation or None

    @property
    def name(self) -> str:
        """For tables."""
        return ", ".join(
            (
                self.architecture,
                self.precision,
                {False: "kept", True: "recomputed"}.get(self.recomputes, f"{self.recomputes} recomputed"),
                "LoRA" if self.is_lora else "full",
                self.optimizer,
            )
        )


def cells(architecture: str, names: Sequence[str]) -> Iterator[Cell]:
    """Every combination with these optimizers."""
    kinds = (False, "cheap", True)
    precisions = ("float32", "bfloat16")  # float16 is for GPUs: a CPU takes minutes for a few steps
    for precision, recomputes, is_lora, optimizer in itertools.product(precisions, kinds, (False, True), names):
        yield Cell(architecture, precision, recomputes, is_lora, optimizer)


def lora(architecture: str) -> Any:
    """Of every linear layer but the head, with dropout; peft refuses that for layers of experts."""
    import peft

    dropout = 0.0 if architecture in ("qwen3_moe", "gpt_oss", "Qwen3-30B-A3B") else 0.05
    targets = ["in_proj"] if architecture == "mamba2" else "all-linear"  # the others of Mamba are refused too
    return peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Options:
    """What else a training may be told; as it is, nothing."""

    settings: EngineSettings = field(default_factory=EngineSettings)
    balance_coefficient: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the plan."""


Shared = dict[Any, tuple[Any, Known]]
"""Models without memory, and what was simulated of their passes."""


def training(cell: Cell, options: Options | None = None) -> Training:
    """What the prediction is told about a cell, beside its plan."""
    options = options or Options()
    return Training(
        arrival_dtype=PRECISIONS[cell.precision][0],
        optimizer=cell.optim[0],
        lora=lora(cell.architecture) if cell.is_lora else None,
        settings=options.settings,
        balance_coefficient=options.balance_coefficient,
    )


def measured(
    cell: Cell,
    config: Any,
    work: Work,
    weights: str | None = None,
    options: Options | None = None,
    *,
    counts_malloc: bool = False,
) -> tuple[Plan, int]:
    """The plan under which two real steps were taken, and the peak in bytes: of torch's allocator, or of every malloc.

    Where logits are rounded to 16 bits, targets are what the model finds likeliest: how many are decides how many rows
    are looked at once more, and what is foreseen is the most.

    What a process needs once (imported modules, compiled kernels) is no step's: before mallocs are counted, the same
    steps are taken by a copy of the model.  The same, since experts take as many tokens as the weights send them, and
    a kernel is compiled for each number.
    """
    import peft
    from transformers import AutoModelForCausalLM

    options = options or Options()
    arrival, compute = (getattr(torch, name) for name in PRECISIONS[cell.precision])
    torch.manual_seed(0)
    gc.collect()
    # Made before counting begins: a head that is tied afterwards has memory of its own at first, and published weights
    # are read in threads, which the profiler does not see.
    if weights is None:
        model = AutoModelForCausalLM.from_config(config, dtype=arrival)
    else:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=arrival)
    if cell.is_lora:
        model = peft.get_peft_model(model, lora(cell.architecture))
    Masters(model).widen(compute, rounds=options.settings.stochastic_rounding)
    inner = model.get_base_model() if cell.is_lora else model
    each = memory_measure.examples(work.document_lengths, work.num_targets, inner.config.vocab_size)
    batch = each * work.num_micro_batches
    if compute.itemsize == 2:
        batch = memory_measure.with_first_choices(model, batch, compute)
    if counts_malloc:
        _warm_up(cell, model, batch, options)
    held_bytes = memory_measure.held_bytes(model)
    with malloc_count.MallocPeak() if counts_malloc else memory_measure.AllocatorPeak() as peak:
        traits = read_traits(model)
        choice = choose_layout(model, traits)
        plan = plan_for(cell, choice, num_threads=torch.get_num_threads(), device="cpu", loss_chunk_rows=256)
        plan = dataclasses.replace(plan, **options.plan)
        _take_steps(cell, model, plan, batch, options)
    return plan, held_bytes + peak.num_bytes


def _take_steps(cell: Cell, model: Any, plan: Plan, batch: Sequence[Example], options: Options) -> None:
    inner = model.get_base_model() if cell.is_lora else model
    groups = optimizers.groups_of(model, inner.get_input_embeddings())
    name, implementation = cell.optim
    optimizer = optimizers.maker(name, is_cuda=False, implementation=implementation)(groups)
    engine, stepper = memory_measure.stepper(
        model, plan, options.settings, optimizer, balance_coefficient=options.balance_coefficient
    )
    memory_measure.take_steps(engine, stepper, batch)


def _warm_up(cell: Cell, model: Any, batch: Sequence[Example], options: Options) -> None:
    model = copy.deepcopy(model)
    choice = choose_layout(model, read_traits(model))
    plan = plan_of(model.config, tokens=1 << 20, compute=PRECISIONS[cell.precision][1], recomputes=cell.recomputes)
    plan = dataclasses.replace(plan, layout=choice.layout, attention=choice.attention, loss_chunk_rows=256)
    _take_steps(cell, model, plan, batch, options)
    del model
    gc.collect()


def compare(
    cell: Cell,
    config: Any | None = None,
    work: Work = WORK,
    weights: str | None = None,
    options: Options | None = None,
    *,
    counts_malloc: bool = False,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """One row: foreseen and counted; `shared` by cells that differ in recomputation and optimizer."""
    config = memory_models.small(cell.architecture) if config is None else config
    plan, counted = measured(cell, config, work, weights, options, counts_malloc=counts_malloc)
    gc.collect()
    start = time.process_time()
    trained = training(cell, options)
    key = (cell.architecture, cell.precision, cell.is_lora)
    shared = {} if shared is None else shared
    if key not in shared:
        shared[key] = meta_model_of(config, plan.compute_dtype, trained), {}
    model, known = shared[key]
    for updates in [one for one in known if one[0] == "updates"]:  # of another optimizer
        del known[updates]
    foreseen: Prediction = simulate_model(model, plan, work, trained, known)
    return {
        "architecture": cell.architecture,
        "precision": cell.precision,
        "recomputes": cell.recomputes,
        "training": "LoRA" if cell.is_lora else "full",
        "optimizer": cell.optimizer,
        "layout": plan.layout.value,
        "tokens": sum(work.document_lengths),
        "peak_at": foreseen.peak.label,
        "foreseen_bytes": foreseen.peak_bytes,
        "scratch_bytes": foreseen.components.get(Component.SCRATCH, 0),
        "counted_bytes": counted,
        "error_percent": round(100 * (foreseen.peak_bytes / counted - 1), 3),
        "simulated_s": round(time.process_time() - start, 2),
    }


def recomputation(recomputes: bool | str) -> dict[str, Any]:
    """The fields of a plan for what a cell says."""
    if recomputes == "cheap":
        return {"gradient_checkpointing": True, "recomputed_layers": 0, "recomputes_cheap": True}
    return {"gradient_checkpointing": bool(recomputes)}


def plan_for(cell: Cell, choice: LayoutChoice, *, num_threads: int, device: str, loss_chunk_rows: int) -> Plan:
    """A plan for a model that exists, as the probe lays it out: all of the work at once."""
    return Plan(
        layout=choice.layout,
        micro_batch_tokens=1 << 20,
        **recomputation(cell.recomputes),
        loss_chunk_rows=loss_chunk_rows,
        attention=choice.attention,
        parameter_dtype="float32",
        compute_dtype=PRECISIONS[cell.precision][1],
        optimizer_implementation=cell.optim[1],
        num_threads=num_threads,
        device=device,
    )


def plan_of(config: Any, *, tokens: int, compute: str, recomputes: bool | str, device: str = "cpu") -> Plan:
    """A plan for a configuration whose model exists nowhere: attention per document, 1,024 rows of logits."""
    return Plan(
        layout=Layout.FLAT_DOCUMENTS,
        micro_batch_tokens=tokens,
        **recomputation(recomputes),
        loss_chunk_rows=max(64, min(4_096, (1 << 28) // (4 * config.vocab_size))),
        attention=attention.NAME,
        parameter_dtype="float32",
        compute_dtype=compute,
        num_threads=1,
        device=device,
    )


def foresee_published() -> None:
    """Bytes and processor seconds of published models, 8 documents of 1,024 tokens, from their configurations alone."""
    print(
        "| model | training | parameters | gradients | optimizer | activations | logits | other | peak GiB | "
        "processor s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in ("SmolLM2-360M", "Qwen3-4B", "Gemma-3-4B text", "Llama-3.1-8B", "Qwen3-30B-A3B"):
        config = memory_models.published(name)
        for is_lora in (False, True):
            plan = plan_of(config, tokens=8_192, compute="bfloat16", recomputes=True)
            start = time.process_time()
            foreseen = simulate(
                config, plan, PUBLISHED_WORK, training(Cell(name, "bfloat16", True, is_lora, "adamw_torch_fused"))
            )
            seconds = time.process_time() - start
            shown = [foreseen.components.get(part, 0) / 2**30 for part in Component]
            columns = " | ".join(f"{value:.2f}" for value in (*shown[:5], sum(shown[5:]), foreseen.peak_bytes / 2**30))
            print(f"| {name} | {'LoRA' if is_lora else 'full'} | {columns} | {seconds:.1f} |", flush=True)


REAL = (
    (Cell("SmolLM2-135M", "float32", False, False, "adamw_torch_fused"), Work((400, 112), 400)),
    (Cell("SmolLM2-135M", "bfloat16", True, False, "adamw_torch_fused"), Work((400, 112), 400)),
    (Cell("SmolLM2-135M", "bfloat16", False, True, "adamw_torch"), Work((400, 112), 400)),
    (Cell("SmolLM2-360M", "bfloat16", True, True, "adamw_torch_fused"), Work((400, 112), 400)),
    (Cell("SmolLM2-360M", "float32", True, False, "sgd"), Work((200, 56), 200)),
    (Cell("Qwen3-0.6B", "bfloat16", False, True, "adamw_torch_fused"), Work((200, 56), 200)),
    (Cell("Qwen3-0.6B", "float32", True, True, "adamw_torch_fused"), Work((200, 56), 200)),
)
"""Real sizes that fit 6 GB; the first model with its published weights where there is a folder of them."""


def compare_real(weights: str | None) -> Iterator[dict[str, Any]]:
    """Real steps of the sizes of published models on this machine."""
    return (
        compare(
            cell,
            memory_models.published(cell.architecture),
            work,
            weights if cell.architecture == "SmolLM2-135M" else None,
        )
        for cell, work in REAL
    )


def show(row: dict[str, Any]) -> None:
    """One line."""
    cell = Cell(*(row[key] for key in ("architecture", "precision", "recomputes")), row["training"] == "LoRA",
                row["optimizer"])  # fmt: skip
    print(
        f"{row['error_percent']:+8.3f} %  {row['foreseen_bytes']:>13,}  {cell.name}; {row['layout']}; "
        f"{row['peak_at']}; {row['simulated_s']} s",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's own text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+")
    parser.add_argument("--optimizers", nargs="+")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--malloc", action="store_true", help="needs Linux, glibc and a C compiler")
    parser.add_argument("--weights", help="folder of SmolLM2-135M's weights, for --real; else random ones")
    parser.add_argument("--cells", type=int, help="so many of each architecture; else all")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args(argv)
    if args.published:
        foresee_published()
        return
    if args.malloc and not malloc_count.is_counted():
        ran = malloc_count.run_counted(["-m", "benchmarks.memory", *(sys.argv[1:] if argv is None else argv)])
        print(ran.stdout, end="")
        raise SystemExit(ran.returncode)
    names = args.architectures or (MALLOC_ARCHITECTURES if args.malloc else memory_models.SMALL)
    optimizer_names = args.optimizers or (OPTIMIZERS[:1] if args.malloc else OPTIMIZERS)
    path = args.csv or (MALLOC_CSV if args.malloc else CSV)
    work = WORK if args.malloc else SHORT_WORK
    errors = []
    rows: Iterable[dict[str, Any]] = (
        compare(cell, work=work, counts_malloc=args.malloc, shared=shared)
        for name, shared in ((name, {}) for name in names)  # type: tuple[str, Shared]
        for cell in itertools.islice(cells(name, optimizer_names), args.cells)
    )
    if args.real:
        rows = compare_real(args.weights)
    for row in rows:
        show(row)
        records.append(path, [row])
        errors.append(abs(row["error_percent"]))
    print(f"{len(errors)} cells; worst {max(errors):.3f} %")


if __name__ == "__main__":
    main()
