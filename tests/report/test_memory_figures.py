"""Figures of memory show what they are given, with units, and say what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sartor.report.memory_figures import COLOURS, plot_memory, plot_settings


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def part(phase: str, layer: int | None, **components: int) -> dict[str, Any]:
    return {"phase": phase, "layer": layer, "components": {k.replace("_", " "): v for k, v in components.items()}}


FORESEEN = [
    part("forward", 0, parameters=1_000_000_000, activations=500_000_000),
    part("forward", 1, parameters=1_000_000_000, activations=900_000_000),
    part("loss", None, parameters=1_000_000_000, activations=900_000_000, logits=20_000_000),
    part("backward", 1, parameters=1_000_000_000, activations=900_000_000, temporaries=30_000_000),
    part("backward", 0, parameters=1_000_000_000, activations=400_000_000),
]
MEASURED = [
    {"phase": entry["phase"], "layer": entry["layer"], "bytes": sum(entry["components"].values()) + 5_000_000}
    for entry in FORESEEN
]
CONTENT: dict[str, Any] = {
    "document_lengths": [30, 12],
    "compute_dtype": "float32",
    "gradient_checkpointing": True,
    "foreseen": {"timeline": FORESEEN},
    "measured": {"timeline": MEASURED},
}


def stairs_of(axes: Axes) -> dict[str, Any]:
    return {str(patch.get_label()): patch.get_data() for patch in axes.patches}  # type: ignore[attr-defined]


def test_components_are_stacked_to_the_foreseen_total_and_measured_is_beside() -> None:
    axes = axes_of(plot_memory(CONTENT))
    tops = [max(patch.get_data().values) for patch in axes.patches]  # type: ignore[attr-defined]
    assert max(tops[:-1]) == pytest.approx(1.93)
    assert list(stairs_of(axes)["measured"].values) == pytest.approx([1.505, 1.905, 1.925, 1.935, 1.405])
    assert axes.get_ylabel() == "Memory (GB)"
    assert axes.get_title() == "Memory over one step: 42 tokens in 2 documents, float32, activations recomputed"
    texts = [text.get_text() for text in axes.texts]
    assert {"parameters", "activations"} <= set(texts)  # labelled where they are
    assert "largest: foreseen 1.93 GB, measured 1.94 GB" in texts
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["forward", "loss", "backward"]


def test_either_may_be_missing() -> None:
    assert "measured" in stairs_of(axes_of(plot_memory({**CONTENT, "foreseen": {"reason": "unknown"}})))
    assert "measured" not in stairs_of(axes_of(plot_memory({**CONTENT, "measured": {"timeline": []}})))
    assert axes_of(plot_memory({})).texts[0].get_text() == "nothing was foreseen or measured"


def test_png_and_svg_are_written(tmp_path: Path) -> None:
    plot_memory(CONTENT, tmp_path / "memory.png")
    plot_memory(CONTENT, tmp_path / "memory.svg")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "memory.svg").read_bytes()


def test_each_setting_is_a_bar_as_long_as_its_peak() -> None:
    settings = [
        {"label": "as it is", "peak_bytes": 30_000_000, "components": {"parameters": 10_000_000, "logits": 20_000_000}},
        {"label": "less", "peak_bytes": 15_000_000, "components": {"parameters": 10_000_000, "logits": 5_000_000}},
        {"label": "never", "reason": "it cannot"},
    ]
    axes = axes_of(plot_settings(settings))
    ends = {}
    for patch in axes.patches:
        ends[round(patch.get_y(), 2)] = max(ends.get(round(patch.get_y(), 2), 0), patch.get_x() + patch.get_width())
    assert sorted(ends.values()) == pytest.approx([15, 30])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["as it is", "less"]
    assert " 15.00  (-50 %)" in [text.get_text() for text in axes.texts]
    assert axes.get_xlabel() == "Foreseen memory at the worst moment (MB); not simulated: never"
    assert axes_of(plot_settings([])).texts[0].get_text() == "no setting was simulated"


def test_every_component_has_a_colour_of_its_own() -> None:
    from sartor.memory.prediction import Component

    assert list(COLOURS) == [component.value for component in Component]
    assert len(set(COLOURS.values())) == len(COLOURS)
