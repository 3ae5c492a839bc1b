"""A decision in words: the lines of a run, and the page of `sartor plan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sartor.memory.decide import Decision, Option, recomputation
from sartor.memory.prediction import Component
from sartor.memory.search import Setting


def gigabytes(num_bytes: float) -> str:
    """`1.94 GB`, `23.6 GB`, `12 MB`."""
    if num_bytes < 1e8:
        return f"{num_bytes / 1e6:,.0f} MB"
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    """`0.52 s`, `12 s`, `35 min`, `6.1 h`."""
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.1f} h"


def run_lines(decision: Decision, num_layers: int) -> Iterator[str]:
    """What a run says before its first step."""
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in components(decision))
    yield (
        f"memory: {gigabytes(decision.chosen.needed_bytes)} more is needed, of {gigabytes(decision.available_bytes)} "
        f"free; at the worst moment ({decision.prediction.peak.label}) {parts}"
    )
    yield f"time: {times(decision)}"
    yield from unasked_lines(decision, num_layers)
    yield from neighbour_lines(decision)
    yield from proposal_lines(decision)


def times(decision: Decision) -> str:
    """Of a step and of the run."""
    run = decision.run_seconds
    whole = "" if run is None else f", {decision.num_steps:,} steps about {duration(run)}"
    return f"a step about {duration(decision.chosen.seconds)}{whole} (estimated; {decision.rates.source})"


def components(decision: Decision) -> list[tuple[str, int]]:
    """What is spent at the worst moment, in the order in which it is shown; nothing that is 0."""
    found = decision.prediction.components
    return [(part.value, found[part]) for part in Component if found.get(part)]


def unasked_lines(decision: Decision, num_layers: int) -> Iterator[str]:
    """What the settings that the user chose cost; nothing where they cost nothing."""
    option = decision.unasked
    if option is not None:
        what = setting_in_words(option.setting, num_layers)
        yield f"  left to the plan ({what}): {difference(option, decision.chosen)}"


def neighbour_lines(decision: Decision) -> Iterator[str]:
    """What other settings would cost."""
    for option in decision.neighbours:
        verdict = "" if option.needed_bytes <= decision.available_bytes else "; does not fit"
        yield f"  {option.label}: {difference(option, decision.chosen)}{verdict}"


def difference(option: Option, chosen: Option) -> str:
    """`1.31 GB (-0.62), time +12 %`."""
    change = option.needed_bytes - chosen.needed_bytes
    sign = "+" if change >= 0 else "-"
    share = option.seconds / chosen.seconds - 1
    return f"{gigabytes(option.needed_bytes)} ({sign}{gigabytes(abs(change))}), time {share:+.0%}"


def proposal_lines(decision: Decision) -> Iterator[str]:
    """By how much it does not fit, and what would make it fit; nothing where it fits."""
    if decision.fits:
        return
    short = f"does not fit by {gigabytes(decision.missing_bytes)}"
    enough = [proposal for proposal in decision.proposals if proposal.fits]
    if not decision.proposals:
        yield short
        return
    yield f"{short}; " + ("any one of these makes it fit:" if enough else "no single change makes it fit:")
    for proposal in decision.proposals:
        verdict = "" if proposal.fits else ": not enough alone"
        yield (
            f"  {proposal.name}: {gigabytes(proposal.needed_bytes)}, a step about {duration(proposal.seconds)}"
            f"{verdict}; {proposal.cost}. Set {proposal.how}"
        )


def setting_in_words(setting: Setting, num_layers: int) -> str:
    """`1,024 tokens at once, nothing recomputed, 1,024 rows of logits at a time`."""
    return (
        f"{setting.micro_batch_tokens:,} tokens at once, "
        f"{recomputation(setting.recomputed_layers, num_layers, recomputes_cheap=setting.execution.recomputes_cheap)}, "
        f"{setting.loss_chunk_rows:,} rows of logits at a time"
    )


def optimizer_in_words(setting: Setting, host_bytes: int = 0) -> str:
    """`optimizer states on the device, its step fused`; `on the host (64.2 GB of its memory), its step fused`."""
    place = f" ({gigabytes(host_bytes)} of its memory)" if host_bytes else ""
    step = "" if setting.execution.implementation is None else f", its step {setting.execution.implementation}"
    return f"optimizer states on the {setting.execution.states}{place}{step}"


def page(decision: Decision, *, head: str, num_layers: int, optimizer: str) -> str:
    """What `sartor plan` prints."""
    prediction = decision.prediction
    lines = [head, ""]
    lines += ["needs", f"  worst moment: {prediction.peak.label}"]
    lines += [f"  {name:<18}{gigabytes(size):>10}" for name, size in components(decision)]
    lines += [f"  {'together':<18}{gigabytes(prediction.peak_bytes):>10}"]
    rest = decision.chosen.needed_bytes - prediction.peak_bytes
    lines += [f"  {'margin and losses':<18}{gigabytes(rest):>10}  the allocator, the process, what is not tracked"]
    lines += [
        f"  {'in all':<18}{gigabytes(decision.chosen.needed_bytes):>10}  of {gigabytes(decision.available_bytes)}: "
        + ("fits" if decision.fits else f"does not fit by {gigabytes(decision.missing_bytes)}"),
        "",
        "chosen" if decision.fits else "the leanest that leaves the mathematics alone",
        f"  {setting_in_words(decision.chosen.setting, num_layers)}; {optimizer}",
        f"  {optimizer_in_words(decision.chosen.setting, decision.host_bytes)}",
        "  a step: per_device_train_batch_size {} x gradient_accumulation_steps {}".format(*decision.device_batch),
        f"  {times(decision)}",
    ]
    if decision.neighbours or decision.unasked is not None:
        lines += ["", "neighbours", *unasked_lines(decision, num_layers), *neighbour_lines(decision)]
    if not decision.fits:
        lines += ["", *proposal_lines(decision)]
    lines += ["", *(f"note: {note}" for note in decision.notes)]
    return "\n".join(lines)


def as_json(decision: Decision, *, num_layers: int, optimizer: str) -> dict[str, Any]:
    """The same for programs: bytes and seconds."""

    def option(entry: Option) -> dict[str, Any]:
        setting = entry.setting
        return {
            "label": entry.label,
            "micro_batch_tokens": setting.micro_batch_tokens,
            "recomputed_layers": setting.recomputed_layers,
            "recomputes_cheap": setting.execution.recomputes_cheap,
            "loss_chunk_rows": setting.loss_chunk_rows,
            "optimizer_implementation": setting.execution.implementation,
            "optimizer_states": setting.execution.states,
            "needed_bytes": entry.needed_bytes,
            "step_s": entry.seconds,
        }

    return {
        "fits": decision.fits,
        "available_bytes": decision.available_bytes,
        "missing_bytes": decision.missing_bytes,
        "peak_bytes": decision.prediction.peak_bytes,
        "peak_at": decision.prediction.peak.label,
        "components": dict(components(decision)),
        "margin_bytes": decision.prediction.margin_bytes,
        "host_bytes": decision.host_bytes,
        "chosen": option(decision.chosen),
        "num_layers": num_layers,
        "optimizer": optimizer,
        "per_device_train_batch_size": decision.device_batch[0],
        "gradient_accumulation_steps": decision.device_batch[1],
        "num_steps": decision.num_steps,
        "run_s": decision.run_seconds,
        "rates": {
            "source": decision.rates.source,
            "flops_per_s": decision.rates.flops_per_second,
            "bytes_per_s": decision.rates.bytes_per_second,
        },
        "neighbours": [option(entry) for entry in decision.neighbours],
        "left_to_the_plan": None if decision.unasked is None else option(decision.unasked),
        "proposals": [
            {
                "name": entry.name,
                "set": entry.how,
                "cost": entry.cost,
                "needed_bytes": entry.needed_bytes,
                "step_s": entry.seconds,
                "fits": entry.fits,
            }
            for entry in decision.proposals
        ],
        "notes": list(decision.notes),
    }
