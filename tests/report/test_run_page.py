"""A run's report is made of its files: figures that are there, foreseen beside measured, what was asked of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sartor.report.run_page import FIGURES, run_page, write_run_page

OPTION: dict[str, Any] = {"label": "chosen", "needed_bytes": 2_000_000_000, "step_s": 1.5}
PLAN: dict[str, Any] = {
    "micro_batch_tokens": 512,
    "predicted_bytes": {"peak": 1_900_000_000},
    "incidents": ["step 3, forward or backward: memory ran out (a|b); at most 256 tokens"],
    "reasons": {"micro_batch_tokens": "as asked"},
    "forecast": {
        "chosen": OPTION,
        "run_s": 150.0,
        "rates": {"source": "measured: 80 GFLOP/s"},
        "neighbours": [{**OPTION, "label": "every layer recomputed", "needed_bytes": 900_000_000, "step_s": 2.0}],
        "left_to_the_plan": {**OPTION, "label": "left to the plan", "step_s": 0.5},
    },
}
MEMORY = {"foreseen": {"peak_bytes": 1_910_000_000}, "measured": {"peak_bytes": 1_890_000_000}}
RECORDS = [{"step": 10, "loss": 2.0}, {"step": 100, "train_runtime": 140.0}]


def test_foreseen_stands_beside_measured_and_neighbours_beside_what_was() -> None:
    page = run_page("run", PLAN, MEMORY, RECORDS, [("figures/memory.svg", "Memory")])
    for line in (
        "![Memory](figures/memory.svg)",
        "| memory of a step | 1.91 GB | 1.89 GB |",
        "| a step | 1.5 s | 1.4 s |",
        "| the run | 2 min 30 s | 2 min 20 s |",
        "| as it was | 2.00 GB | 1.5 s |",
        "| left to the plan | 2.00 GB | 500 ms |",
        "| every layer recomputed | 0.90 GB | 2.0 s |",
        r"memory ran out (a\|b)",
        "| `micro_batch_tokens` | 512: as asked |",
    ):
        assert line in page


def test_what_is_not_known_is_left_out() -> None:
    page = run_page("run", {}, {}, [], [])
    assert page == "# run\n"
    assert "| memory of a step | 1.90 GB | not measured: there was no rehearsal |" in run_page("run", PLAN, {}, [], [])


def test_it_is_written_from_the_folder_alone_with_the_figures_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / FIGURES[0][0]).write_bytes(b"a picture")
    page = write_run_page(tmp_path).read_text(encoding="utf-8")
    assert page.count("![") == 1
    assert f"](figures/{FIGURES[0][0]})" in page
