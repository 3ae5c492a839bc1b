"""Foreseen memory against every malloc of a process, which shares nothing with torch's own counts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from benchmarks import malloc_count


@pytest.mark.slow
def test_the_peak_is_what_malloc_gives_out(tmp_path: Path) -> None:
    against = malloc_count.why_not()
    if against is not None:
        pytest.skip(against)
    arguments = ["--architectures", "llama, tied", "--optimizers", "adamw_torch_fused", "--cells", "2"]
    ran = malloc_count.run_counted(
        ["-m", "benchmarks.memory", "--malloc", *arguments, "--csv", str(tmp_path / "found.csv")], timeout_s=300
    )
    assert ran.returncode == 0, ran.stdout
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(abs(float(row["error_percent"])) < 2 for row in rows), rows
