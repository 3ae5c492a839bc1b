from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sartor.errors import RunFolderError
from sartor.report.figures import plot_lengths, plot_loss

PNG = b"\x89PNG\r\n\x1a\n"


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_every_length_is_in_a_bar_and_the_labels_are_the_tutorials(tmp_path: Path) -> None:
    lengths = [5, 5, 6, 900, 17, 250]
    axes = axes_of(plot_lengths(lengths, tmp_path / "lengths.png"))
    assert sum(bar.get_height() for bar in axes.patches) == len(lengths)
    assert len(axes.patches) == 50
    assert axes.get_title() == "Distribution of input_ids length"
    assert axes.get_xlabel().startswith("Length of input_ids")
    assert axes.get_ylabel() == "Number of examples"
    assert (tmp_path / "lengths.png").read_bytes().startswith(PNG)
    assert legend_of(axes) == ["mean 197, longest 900"]


def test_bins_are_never_narrower_than_a_token() -> None:
    axes = axes_of(plot_lengths([3, 3, 4, 5, 9]))
    assert [bar.get_height() for bar in axes.patches] == [2, 1, 1, 0, 0, 0, 1]
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in axes.patches] == [3, 4, 5, 6, 7, 8, 9]


def test_max_length_tells_how_many_are_longer() -> None:
    assert "max_length 10: 2 of 4 longer" in legend_of(axes_of(plot_lengths([5, 10, 11, 12], max_length=10)))


def test_a_far_max_length_does_not_squeeze_the_bars() -> None:
    axes = axes_of(plot_lengths([3, 4, 9], max_length=1024))
    assert axes.get_xlim()[1] < 20
    assert "max_length 1,024: none longer (off to the right)" in legend_of(axes)


def test_losses_are_drawn_at_their_steps_and_evaluations_apart(tmp_path: Path) -> None:
    history = [
        {"loss": 3.0, "step": 10},
        {"loss": 2.0, "step": 20},
        {"eval_loss": 2.5, "step": 20},
        {"eval_short_loss": 2.2, "step": 20},
        {"train_loss": 2.4, "step": 20},
    ]
    axes = axes_of(plot_loss(history, tmp_path / "loss.png"))
    drawn = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "training": [[10, 3.0], [20, 2.0]],
        "evaluation": [[20, 2.5]],
        "evaluation, short": [[20, 2.2]],
    }
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


def test_a_loss_that_is_not_finite_is_marked_not_left_out() -> None:
    history = [{"loss": 3.0, "step": 1}, {"loss": math.nan, "step": 2}, {"loss": math.inf, "step": 3}]
    marks = [line for line in axes_of(plot_loss(history)).lines if line.get_label() == "training: not finite"]
    assert [list(mark.get_xdata()) for mark in marks] == [[2, 3]]


def test_nothing_to_draw_says_so() -> None:
    assert [text.get_text() for text in axes_of(plot_loss([{"train_loss": 1.0, "step": 3}])).texts] == [
        "no loss was logged"
    ]
    assert [text.get_text() for text in axes_of(plot_lengths([])).texts] == ["no examples"]


def test_pyplot_is_not_even_imported() -> None:
    code = (
        "import sys; from sartor.report.figures import plot_lengths; plot_lengths([1, 2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere"):
        plot_lengths([1], tmp_path / "nowhere" / "lengths.png")
