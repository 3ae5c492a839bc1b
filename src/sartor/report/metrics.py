"""`metrics.jsonl`: one JSON object per line for everything that was logged.

What comes in is a dictionary of numbers, what goes out is a line that any JSON reader takes.  Kept true: the file holds
complete lines only, also after a crash or on a full disk, so that it can be read while the run goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sartor.errors import ConfigurationError, RunFolderError
from sartor.report.lines import LinesFile, whole_lines

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@runtime_checkable
class _Array(Protocol):
    """A number or an array of a library: numpy's and torch's both turn themselves into plain Python."""

    def tolist(self) -> Any: ...


class MetricsFile(LinesFile):
    """Appends records to a JSON Lines file, one line at a time and never a part of one.

    An existing file is continued, by a new run too (`last_run` tells them apart).
    """

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.  It is in the file when this returns.

        Numbers become plain JSON numbers (numpy's and torch's too); NaN and infinities, which JSON does not have, the
        strings "NaN", "Infinity" and "-Infinity", which `read` turns back.

        Raises:
            RunFolderError: the disk is full, or the file or its folder has gone since it was opened.
            ConfigurationError: a value that JSON cannot hold; names the key.
        """
        plain = {str(key): _plain(value, str(key)) for key, value in record.items()}
        self.append(json.dumps(plain, allow_nan=False).encode("ascii") + b"\n")


def read(path: Path | str) -> list[dict[str, Any]]:
    """All records of a metrics file, NaN and infinities as floats again.

    A last line without its line end is still being written and is left out.

    Raises:
        RunFolderError: there is no such file, or a line is not a JSON object; names the line.
    """
    records = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(record, dict):
            raise RunFolderError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
        records.append({key: _restored(value) for key, value in record.items()})
    return records


def last_run(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The records of the last run: from where the step last goes back on.

    Example: of the steps 10, 20, 10 the last.  A run that is resumed continues the file, and never goes back.
    """
    begin, before = 0, -1
    for place, record in enumerate(records):
        step = record.get("step", before)
        if step < before:
            begin = place
        before = step
    return records[begin:]


def lines_of_last_run(path: Path | str) -> bytes:
    """The lines of `last_run`, as they stand in the file.

    Raises:
        RunFolderError: as `read`.
    """
    num_lines = len(last_run(read(path)))
    lines = whole_lines(path)
    return b"".join(line + b"\n" for line in lines[len(lines) - num_lines :])


def keys_holding_text(path: Path | str) -> frozenset[str]:
    """Keys whose value, in some record, is or contains text: what somebody logged that is no measurement.

    Raises:
        RunFolderError: as `read`.
    """
    return frozenset(key for record in read(path) for key, value in record.items() if holds_text(value))


def holds_text(value: Any) -> bool:
    """Whether a value as `read` returns it is, or contains, a string."""
    if isinstance(value, Mapping):
        return any(holds_text(part) for part in value.values())
    if isinstance(value, list):
        return any(holds_text(part) for part in value)
    return isinstance(value, str)


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _finite(float(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(part, f"{key}.{name}") for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, key) for part in value]
    if isinstance(value, _Array):
        return _plain(value.tolist(), key)
    raise ConfigurationError(
        f"the metric {key!r} is a {type(value).__name__}, which JSON cannot hold: log a number instead (does it come "
        "from compute_metrics?)"
    )


def _finite(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_restored(part) for part in value]
    return value
