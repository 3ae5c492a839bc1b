"""Figures of a run as PNG: the lengths of the examples, and the loss.

What comes in is plain numbers; what comes out is a matplotlib Figure that belongs to nobody else: pyplot, its list of
open figures and the user's backend are not touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.report.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_SIZE_INCHES = (7.0, 4.2)
_DOTS_PER_INCH = 120
_BINS = 50
_FAR = 1.5
"""A max_length of more than this many times the longest example is not drawn."""
_TRAINED = "#1f4e8c"
_EVALUATED = ("#c8501e", "#3a7d44", "#8c3b8c", "#7a6a00")
_LIMIT = "#b00020"


def plot_lengths(lengths: Sequence[int], path: Path | str | None = None, max_length: int | None = None) -> Figure:
    """Histogram of the examples' lengths in tokens; with `max_length`, a line there and how many are longer.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    figure, axes = new_figure()
    axes.set_title("Distribution of input_ids length")
    axes.set_xlabel("Length of input_ids (tokens)")
    axes.set_ylabel("Number of examples")
    if not lengths:
        say(axes, "no examples")
        return finished(figure, path)
    low, high = min(lengths), max(lengths)
    # Bins narrower than a token would leave gaps between the bars that look like missing lengths.
    bins = min(_BINS, high - low + 1)
    axes.hist(lengths, bins=bins, range=(low - 0.5, high + 0.5), color=_TRAINED, edgecolor="white", linewidth=0.3)
    _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    mean = sum(lengths) / len(lengths)
    label = f"mean {mean:,.0f}, longest {high:,}"
    axes.axvline(mean, color="black", linestyle=":", linewidth=1.2, label=label)
    if max_length is not None:
        longer = sum(length > max_length for length in lengths)
        label = f"max_length {max_length:,}: " + (f"{longer:,} of {len(lengths):,} longer" if longer else "none longer")
        if max_length <= _FAR * high:
            axes.axvline(max_length, color=_LIMIT, linestyle="--", linewidth=1.2, label=label)
        else:  # drawing it would squeeze all bars into the left edge; the legend says it
            axes.plot([], [], linestyle="", label=f"{label} (off to the right)")
    axes.legend(frameon=False)
    return finished(figure, path)


def plot_loss(log_history: Iterable[Mapping[str, Any]], path: Path | str | None = None) -> Figure:
    """Training and evaluation loss by step, from `trainer.state.log_history` or the records of `metrics.jsonl`.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    records = list(log_history)
    figure, axes = new_figure()
    axes.set_title("Loss")
    axes.set_xlabel("Step")
    axes.set_ylabel("Loss per target token")
    names = [key for record in records for key in record if key.startswith("eval_") and key.endswith("_loss")]
    colours = iter(_EVALUATED * (1 + len(names) // len(_EVALUATED)))
    _curve(axes, records, "loss", "training", _TRAINED, "")
    for name in dict.fromkeys(names):
        data_set = name.removeprefix("eval_").removesuffix("loss").rstrip("_")
        _curve(axes, records, name, f"evaluation, {data_set}" if data_set else "evaluation", next(colours), "o")
    if axes.lines:
        _whole_numbers(axes.xaxis)
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
    else:
        say(axes, "no loss was logged")
    return finished(figure, path)


def _curve(axes: Axes, records: Sequence[Mapping[str, Any]], key: str, label: str, colour: str, marker: str) -> None:
    points = [(record["step"], float(record[key])) for record in records if key in record and "step" in record]
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    # One point draws no line, and matplotlib leaves out what is not finite without a word.
    axes.plot(
        steps, losses, color=colour, label=label, marker=marker or ("o" if len(points) == 1 else ""), markersize=4
    )
    broken = [step for step, loss in points if not math.isfinite(loss)]
    if broken:
        axes.plot(
            broken,
            [0.02] * len(broken),
            transform=axes.get_xaxis_transform(),
            linestyle="",
            marker="x",
            color=_LIMIT,
            label=f"{label}: not finite",
        )


def _whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers: there is no step 2.5, no length 7.5 and no half example."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def new_figure(size_inches: tuple[float, float] = _SIZE_INCHES) -> tuple[Figure, Axes]:
    """An empty figure that nobody else knows of, in the style that all share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_inches, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def say(axes: Axes, text: str) -> None:
    """Text in place of a drawing."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#555555")
    axes.set_xticks([])
    axes.set_yticks([])


def finished(figure: Figure, path: Path | str | None) -> Figure:
    """The figure, written where a path is given: as SVG where it ends so, else as PNG."""
    if path is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg" if Path(path).suffix == ".svg" else "png")
        write_whole(Path(path), buffer.getvalue())
    return figure
