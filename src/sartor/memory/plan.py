"""The plan: how a run is executed, chosen by stated defaults, and written to `plan.json`.

In: traits, settings, device.  Out: a frozen `Plan` with a sentence for every choice.  Nothing here changes the
mathematics.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sartor.device import Kind, kind_of
from sartor.masking import masked
from sartor.optim import registry
from sartor.records import EngineSettings, Layout, Plan

if TYPE_CHECKING:
    import torch

    from sartor.engine.layout import LayoutChoice
    from sartor.engine.traits import ModelTraits

LOSS_CHUNK_BYTES = 1 << 28
"""Of float32 logits that exist at a time."""
ACTIVATION_VALUES_PER_HIDDEN = 20
"""Saved values per token, layer and hidden unit of a Llama-like layer: norms, projections, and three MLP widths."""


def default_plan(
    traits: ModelTraits,
    settings: EngineSettings,
    choice: LayoutChoice,
    *,
    device: torch.device,
    parameter_dtype: str,
    compute_dtype: str,
    compute_reason: str,
    longest_tokens: int,
    available_bytes: int,
    num_threads: int,
) -> Plan:
    """Choose what the user left open.

    Args:
        longest_tokens: of all documents; a micro-batch holds at least one.
        available_bytes: free memory of the device.
    """
    reasons = {"layout": choice.reason, "compute_dtype": compute_reason}
    if settings.micro_batch_tokens is not None:
        tokens = settings.micro_batch_tokens
        reasons["micro_batch_tokens"] = "as asked; a longer document goes alone"
    else:
        default = most_tokens(kind_of(device), compute_dtype)
        tokens = max(default, longest_tokens)
        reasons["micro_batch_tokens"] = (
            f"the longest document, {longest_tokens} tokens"
            if longest_tokens > default
            else f"default on {device.type}"
        )
    activation_bytes = tokens * traits.num_layers * traits.hidden_size * ACTIVATION_VALUES_PER_HIDDEN * 4
    cheap = settings.recomputed_operations == "cheap"
    if settings.gradient_checkpointing is not None or cheap:
        checkpointing = settings.gradient_checkpointing is not False
        reasons["gradient_checkpointing"] = "as asked"
    else:
        checkpointing = activation_bytes > available_bytes // 4
        reasons["gradient_checkpointing"] = (
            f"activations of {tokens} tokens take roughly {_gigabytes(activation_bytes)}, "
            f"{'over' if checkpointing else 'under'} a quarter of the {_gigabytes(available_bytes)} available"
        )
    if settings.loss_chunk_rows is not None:
        rows = settings.loss_chunk_rows
        reasons["loss_chunk_rows"] = "as asked"
    else:
        rows = most_chunk_rows(traits.vocabulary_size)
        reasons["loss_chunk_rows"] = f"at most {LOSS_CHUNK_BYTES >> 20} MiB of logits at a time"
    return Plan(
        layout=choice.layout,
        micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
        recomputed_layers=0 if cheap else None,
        recomputes_cheap=cheap,
        loss_chunk_rows=rows,
        attention=choice.attention,
        parameter_dtype=parameter_dtype,
        compute_dtype=compute_dtype,
        num_threads=num_threads,
        device=str(device),
        stochastic_rounding=settings.stochastic_rounding,
        compile_backend=settings.compile_backend,
        compile_mode=settings.compile_mode,
        reasons=reasons,
    )


def with_optimizer(plan: Plan, settings: EngineSettings, name: str | None) -> Plan:
    """The plan with the optimizer's implementation and the place of its states: as asked, else the fastest there is.

    Args:
        plan: for a device.
        settings: what was asked for.
        name: `SFTConfig.optim`; None: an optimizer of the user's own, which is left as it is.
    """
    possible = () if name is None else registry.implementations(name, kind_of(plan.device).name)
    reasons = dict(plan.reasons)
    implementation = settings.optimizer_implementation
    if implementation is not None:
        reasons["optimizer_implementation"] = "as asked"
    elif possible:
        implementation = possible[0]
        reasons["optimizer_implementation"] = f"the fastest of optim={name!r} on {plan.device}"
    if settings.optimizer_states is not None:
        reasons["optimizer_states"] = "as asked"
        if settings.optimizer_states == "host" and kind_of(plan.device).is_host:
            reasons["optimizer_states"] += ", though on a CPU the host's memory is the device's"
    return dataclasses.replace(
        plan,
        optimizer_implementation=implementation,
        optimizer_states=settings.optimizer_states or "device",
        reasons=reasons,
    )


def most_chunk_rows(vocabulary_size: int) -> int:
    """Rows of logits at a time that are tried first: a power of two, of at most `LOSS_CHUNK_BYTES`."""
    fitting = max(1, LOSS_CHUNK_BYTES // (4 * vocabulary_size))
    return min(4_096, 1 << (fitting.bit_length() - 1))


def most_tokens(kind: Kind, compute_dtype: str) -> int:
    """Tokens at once beyond which nothing is gained."""
    return kind.most_half_tokens if compute_dtype in ("bfloat16", "float16") else kind.most_tokens


def device_rows(total_rows: int, longest_tokens: int, micro_batch_tokens: int) -> int:
    """Rows of a device batch: the most that divide an optimizer batch and go through at once, however long they are.

    Example: 32 rows of at most 300 tokens, 1,024 tokens at once: three would fit, and two divide 32.
    """
    fitting = min(total_rows, max(1, micro_batch_tokens // max(1, longest_tokens)))
    return next(rows for rows in range(fitting, 0, -1) if total_rows % rows == 0)


def write_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan as JSON, fields sorted as declared; secrets in it are masked."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(masked(dataclasses.asdict(plan)), file, indent=2, ensure_ascii=False)
        file.write("\n")


def plan_of(fields: Mapping[str, Any]) -> Plan:
    """A plan from its fields as JSON holds them."""
    incidents = tuple(fields.get("incidents", ()))
    return Plan(**{**fields, "layout": Layout(fields["layout"]), "incidents": incidents})


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
