"""Append-only CSV: every row says when, at which commit, on which machine and with which versions it was measured."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import machine


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile, interpolated; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows; a file whose columns differ is an error, since nothing written before may change."""
    context = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": machine.commit(),
        "processor": machine.processor(),
        **{name: _version(name) for name in ("torch", "transformers", "trl")},
    }
    columns = [*context, *rows[0]]
    exists = path.exists() and path.stat().st_size > 0
    if exists:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file))
        if found != columns:
            raise SystemExit(f"{path} has other columns ({', '.join(found)}): give another file with --csv")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if not exists:
            writer.writeheader()
        writer.writerows({**context, **row} for row in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
