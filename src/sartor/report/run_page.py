"""The report of a run, `report.md` in its folder: its figures, what was foreseen beside what was measured, and its
plan.

In: the files that a run leaves (`plan.json`, `memory.json`, `metrics.jsonl`, `figures/`).  Out: a page in Markdown.
What it keeps true: it is made of these files alone, at any time again; what is not there is left out; it never leaves
the folder by itself.

For example: foreseen 2.98 GB and measured 2.98 GB give the line `| memory of a step | 2.98 GB | 2.98 GB |`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor.masking import masked_text
from sartor.report import markdown, metrics
from sartor.report.files import write_whole

NAME = "report.md"
FIGURES = (
    ("loss.png", "Loss per target token"),
    ("lengths.png", "How long the rows are, in tokens"),
    ("memory.svg", "Memory over one step, by component: foreseen as areas, measured as a line"),
    ("settings.svg", "What consumes memory: one setting changed at a time"),
)
"""Below `figures/`, in the order in which they are shown, with what they show."""


def write_run_page(folder: Path | str) -> Path:
    """Write the report of the run in `folder`; returns its path.

    Raises:
        RunFolderError: it cannot be written.
    """
    folder = Path(folder)
    shown = [(f"figures/{name}", title) for name, title in FIGURES if (folder / "figures" / name).exists()]
    log = folder / "metrics.jsonl"
    records = metrics.last_run(metrics.read(log)) if log.exists() else []
    page = run_page(folder.name, _read(folder / "plan.json"), _read(folder / "memory.json"), records, shown)
    return write_whole(folder / NAME, masked_text(page))


def _read(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def run_page(
    name: str,
    plan: Mapping[str, Any],
    memory: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    figures: Sequence[tuple[str, str]],
) -> str:
    """The page.

    Args:
        name: of the run.
        plan: what `plan.json` holds; empty: nothing.
        memory: what `memory.json` holds; empty: there was no rehearsal.
        records: of `metrics.jsonl`.
        figures: (path from the page, what it shows) of those that are there.
    """
    parts = [f"# {markdown.text(name)}"]
    parts += [f"## {title}\n\n![{title}]({path})" for path, title in figures]
    compared = list(_compared(plan, memory, records))
    if compared:
        lines = ["| | foreseen | measured |", "|---|---|---|", *compared]
        source = plan.get("forecast", {}).get("rates", {}).get("source")
        note = f"\n\nTimes are estimated; {markdown.text(source)}." if source else ""
        parts.append("## Foreseen and measured\n\n" + "\n".join(lines) + note)
    neighbours = list(_neighbours(plan.get("forecast", {})))
    if neighbours:
        lines = ["| | memory | time of a step |", "|---|---|---|", *neighbours]
        parts.append("## What other settings would have cost, foreseen\n\n" + "\n".join(lines))
    if plan.get("incidents"):
        parts.append("## When memory ran out\n\n" + "\n".join(f"- {markdown.text(one)}" for one in plan["incidents"]))
    reasons = [
        (
            f"`{field}`",
            markdown.text(reason if reason.startswith(str(plan.get(field))) else f"{plan.get(field)}: {reason}"),
        )
        for field, reason in plan.get("reasons", {}).items()
    ]
    if reasons:
        parts.append("## How it was executed\n\n" + markdown.table(("setting", "value and reason"), reasons))
    return "\n\n".join(parts) + "\n"


def _compared(
    plan: Mapping[str, Any], memory: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    foreseen, measured = memory.get("foreseen", {}).get("peak_bytes"), memory.get("measured", {}).get("peak_bytes")
    foreseen = foreseen or plan.get("predicted_bytes", {}).get("peak")
    if foreseen or measured:
        why = memory.get("measured", {}).get("reason", "there was no rehearsal")
        not_measured = f"not measured: {why}"
        yield f"| memory of a step | {_amount(foreseen)} | {_amount(measured) if measured else not_measured} |"
    forecast = plan.get("forecast", {})
    step_s, run_s = forecast.get("chosen", {}).get("step_s"), forecast.get("run_s")
    summary: Mapping[str, Any] = next((one for one in reversed(records) if "train_runtime" in one), {})
    taken, steps = summary.get("train_runtime"), summary.get("step")
    if step_s or taken:
        yield f"| a step | {_time(step_s)} | {_time(taken / steps if taken and steps else None)} |"
        yield f"| the run | {_time(run_s)} | {_time(taken)} |"


def _neighbours(forecast: Mapping[str, Any]) -> Iterator[str]:
    options = [*forecast.get("neighbours", ())]
    if forecast.get("left_to_the_plan"):
        options.insert(0, forecast["left_to_the_plan"])
    if not options:
        return
    for option in (forecast["chosen"], *options):
        label = "as it was" if option["label"] == "chosen" else markdown.text(option["label"])
        yield f"| {label} | {_amount(option['needed_bytes'])} | {_time(option['step_s'])} |"


def _amount(num_bytes: float | None) -> str:
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1_000 * seconds:.0f} ms" if seconds < 1 else markdown.duration(seconds)
