"""Figures of a run's memory: over one step, stacked by component, and by setting.

What comes in is what `memory.json` holds; what goes out is a matplotlib Figure that belongs to nobody else.  Colours
are those of Okabe and Ito, which people with any kind of colour vision tell apart (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.report.figures import finished, new_figure, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer states": "#009E73",
    "activations": "#F0E442",
    "logits": "#E69F00",
    "temporaries": "#CC79A7",
    "scratch": "#999999",
}
_MEASURED = "#000000"
_DIRECT = 0.05
"""Of the figure's height, above which a component is labelled where it is; thinner ones go into the legend."""
_SIZE = (9.0, 5.0)

Timeline = Sequence[Mapping[str, Any]]


def plot_memory(content: Mapping[str, Any], path: Path | str | None = None) -> Figure:
    """Memory over one step: foreseen by component, as areas, and measured, as a line.

    Args:
        content: what `memory.json` holds.
        path: where to write it, as PNG or (`.svg`) SVG.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    figure, axes = new_figure(_SIZE)
    foreseen: Timeline = content.get("foreseen", {}).get("timeline", [])
    measured: Timeline = content.get("measured", {}).get("timeline", [])
    axes.set_title(_title(content))
    if not foreseen and not measured:
        say(axes, "nothing was foreseen or measured")
        return finished(figure, path)
    unit, name = _unit(_peak(foreseen, measured))
    axes.set_ylabel(f"Memory ({name})")
    axes.set_xlabel("Moment of the step: the largest of each stretch")
    if foreseen:
        _areas(axes, foreseen, unit)
    if measured:
        heights = [part["bytes"] / unit for part in measured]
        edges = list(range(len(heights) + 1))
        axes.stairs(heights, edges, color=_MEASURED, linewidth=2.0, baseline=None, label="measured")
    longer = foreseen if len(foreseen) >= len(measured) else measured
    _phases(axes, longer)
    axes.set_xlim(0, len(longer))
    axes.set_ylim(0, 1.12 * _peak(foreseen, measured) / unit)
    unmeasured = content.get("measured", {}).get("reason", "there was no rehearsal")
    _peaks(axes, foreseen, measured, unit, name, unmeasured)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finished(figure, path)


def _title(content: Mapping[str, Any]) -> str:
    lengths = content.get("document_lengths", [])
    if not lengths:
        return "Memory over one step"
    return (
        f"Memory over one step: {sum(lengths):,} tokens in {len(lengths):,} "
        f"document{'s' if len(lengths) != 1 else ''}, "
        f"{content.get('compute_dtype', '')}, "
        f"activations {'recomputed' if content.get('gradient_checkpointing') else 'kept'}"
    )


def _areas(axes: Axes, foreseen: Timeline, unit: float) -> None:
    edges = list(range(len(foreseen) + 1))
    below = [0.0] * len(foreseen)
    top = max(sum(part["components"].values()) for part in foreseen) / unit
    for component, colour in COLOURS.items():
        heights = [part["components"].get(component, 0) / unit for part in foreseen]
        if not any(heights):
            continue
        above = [low + height for low, height in zip(below, heights, strict=True)]
        widest = max(range(len(heights)), key=lambda place: heights[place])
        high = _as_high(heights, widest)
        is_direct = heights[widest] >= _DIRECT * top and len(high) >= len(heights) // 6
        axes.stairs(
            above, edges, baseline=below, fill=True, color=colour, linewidth=0, label=None if is_direct else component
        )
        if is_direct:
            place = high[len(high) // 2]
            axes.text(
                place + 0.5,
                below[place] + heights[place] / 2,
                component,
                ha="center",
                va="center",
                fontsize=9,
                color="white" if component in ("parameters", "optimizer states") else "black",
            )
        below = above


def _as_high(heights: Sequence[float], widest: int) -> range:
    """The widest stretch and its neighbours that are about as high."""
    high = [height >= 0.7 * heights[widest] for height in heights]
    start = end = widest
    while start > 0 and high[start - 1]:
        start -= 1
    while end + 1 < len(heights) and high[end + 1]:
        end += 1
    return range(start, end + 1)


def _phases(axes: Axes, timeline: Timeline) -> None:
    """The names of phases below their middle, lines where one ends."""
    places, names, start = [], [], 0
    for phase, group in groupby(timeline, key=lambda part: part["phase"]):
        end = start + len(list(group))
        if end - start >= len(timeline) // 12 or len(timeline) < 8:
            places.append((start + end) / 2)
            names.append(phase)
        if start:
            axes.axvline(start, color="#555555", linewidth=0.5, linestyle=":")
        start = end
    axes.set_xticks(places, names)
    axes.tick_params(axis="x", length=0)


def _peaks(axes: Axes, foreseen: Timeline, measured: Timeline, unit: float, name: str, unmeasured: str) -> None:
    said = []
    for label, timeline in (("foreseen", foreseen), ("measured", measured)):
        if timeline:
            said.append(f"{label} {max(map(_total, timeline)) / unit:.2f} {name}")
        else:
            said.append(f"not {label}" + (f" ({unmeasured})" if label == "measured" else ""))
    axes.text(0.01, 0.985, "largest: " + ", ".join(said), transform=axes.transAxes, va="top", fontsize=9)


def plot_settings(settings: Sequence[Mapping[str, Any]], path: Path | str | None = None) -> Figure:
    """What consumes memory: the largest moment of a step, one bar per setting, by component.

    Args:
        settings: what `memory.json` holds under this name; those without numbers are named below the bars.
        path: where to write it, as PNG or (`.svg`) SVG.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    figure, axes = new_figure(_SIZE)
    axes.set_title("What consumes memory: the step as it is, and with one setting changed")
    bars = [entry for entry in settings if "peak_bytes" in entry]
    if not bars:
        say(axes, "no setting was simulated")
        return finished(figure, path)
    unit, name = _unit(max(entry["peak_bytes"] for entry in bars))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    places = range(len(bars))
    left = [0.0] * len(bars)
    for component, colour in COLOURS.items():
        widths = [entry["components"].get(component, 0) / unit for entry in bars]
        if any(widths):
            axes.barh(places, widths, left=left, color=colour, label=component, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    first = bars[0]["peak_bytes"]
    for place, entry in zip(places, bars, strict=True):
        share = "" if place == 0 else f"  ({100 * (entry['peak_bytes'] / first - 1):+.0f} %)"
        axes.text(left[place], place, f" {left[place]:.2f}{share}", va="center", fontsize=9)
    axes.set_yticks(places, [entry["label"] for entry in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(left))
    missing = [entry["label"] for entry in settings if "peak_bytes" not in entry]
    axes.set_xlabel(
        f"Foreseen memory at the worst moment ({name})" + (f"; not simulated: {', '.join(missing)}" if missing else "")
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finished(figure, path)


def _unit(num_bytes: float) -> tuple[float, str]:
    return (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")


def _total(part: Mapping[str, Any]) -> float:
    return float(part["bytes"]) if "bytes" in part else float(sum(part["components"].values()))


def _peak(*timelines: Timeline) -> float:
    return max(_total(part) for timeline in timelines for part in timeline)
