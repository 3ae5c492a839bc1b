"""Reads files of rows: JSON lines, JSON, CSV and Parquet, each also gzipped (but Parquet).

What comes in: a path.  What goes out: a `datasets.Dataset` with the file's columns and one more, `WHERE_COLUMN`, that
says for each row where it stands ("train.jsonl, line 12"); it survives filtering, shuffling and joining, and is left
out of what is trained.  What it keeps true: every line is read and becomes a row or a problem; nothing is skipped but
blank lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.problems import ProblemLog, excerpt
from sartor.errors import DataError
from sartor.records import Row

if TYPE_CHECKING:
    import datasets

WHERE_COLUMN = "__where__"
"""Column of data sets read from files: each row's file and line."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def kind_of(path: Path) -> str | None:
    """The suffix that decides how a file is read, in lower case and without `.gz`; None where it is not one of ours."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_file(path: Path) -> datasets.Dataset:
    """Read one file of rows.

    Raises:
        DataError: the file cannot be read, has no rows, or some of its lines are no rows; all of these are in one
        error.
    """
    suffix = kind_of(path)
    if suffix is None:
        raise DataError(
            f"{path} is of no kind that can be read. Its name should end in {', '.join(SUFFIXES)} (.gz may follow)."
        )
    try:
        if suffix == ".parquet":
            return _read_parquet(path)
        problems = ProblemLog()
        rows, num_rows = _read_text(path, suffix, problems)
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Check the path, its permissions and that it is whole."
        ) from error
    problems.raise_if_any(str(path), num_rows)
    if not rows:
        raise DataError(f"{path} has no rows. Write one row per line, for example {EXAMPLE_ROW}")
    return dataset_of(rows)


EXAMPLE_ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'


def _read_text(path: Path, suffix: str, problems: ProblemLog) -> tuple[list[Row], int]:
    """Rows of a text file and how many there should have been; what is wrong goes to `problems`."""
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.decompress(content)
    content = content.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some Windows programs write
    if suffix in (".csv", ".tsv"):
        rows = _csv_rows(content, path, "\t" if suffix == ".tsv" else ",", problems)
    elif suffix == ".json" and not _is_lines(content):
        rows = _json_rows(content, path, problems)
    else:
        rows = _jsonl_rows(content, path, problems)
    kept = [row for row in rows if row is not None]
    return kept, len(rows)


def _is_lines(content: bytes) -> bool:
    """Whether a `.json` file is really one object per line, as many are."""
    first, _, rest = content.lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except ValueError:
        return False
    return True


def _jsonl_rows(content: bytes, path: Path, problems: ProblemLog) -> list[Row | None]:
    rows: list[Row | None] = []
    lines = content.split(b"\n")
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            is_cut_off = number == len(lines)  # its newline is missing, and with it perhaps more
            rows.append(_jsonl_row(raw, f"{path.name}, line {number}", path.name, number, is_cut_off, problems))
    return rows


def _jsonl_row(raw: bytes, where: str, source: str, number: int, is_cut_off: bool, problems: ProblemLog) -> Row | None:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8."
        problems.add("not UTF-8", where, message, raw.decode("utf-8", errors="replace"))
        return None
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        if is_cut_off:
            message = (
                f"{error.msg} at column {error.colno}, and no newline after it. Was the file copied or written whole?"
            )
            problems.add("the last line ends in the middle", where, message, line)
        else:
            message = f"{error.msg} at column {error.colno}. Each line must be one JSON object."
            problems.add("not JSON", where, message, line)
        return None
    if not isinstance(columns, dict):
        message = f"it is {_json_type(columns)}. Each line must be one JSON object, such as {EXAMPLE_ROW}"
        problems.add("not an object", where, message, line)
        return None
    return Row(columns, source, number, is_line=True)


def _json_rows(content: bytes, path: Path, problems: ProblemLog) -> list[Row | None]:
    """Rows of a file that is one JSON list of objects."""
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        line = content.decode("utf-8", errors="replace").split("\n")[error.lineno - 1 : error.lineno]
        raise DataError(
            f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}. A .json file holds one list "
            f"of objects, or one object per line.\n  {excerpt(line[0] if line else '')}"
        ) from error
    if isinstance(value, dict):
        lists = [
            key for key, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)
        ]
        hint = f" Its rows seem to be under {lists[0]!r}: save that list alone." if lists else ""
        raise DataError(f"{path} holds one object, not a list of rows.{hint}")
    if not isinstance(value, list):
        raise DataError(f"{path} holds {_json_type(value)}, not a list of rows.")
    rows: list[Row | None] = []
    for number, columns in enumerate(value):
        if isinstance(columns, dict):
            rows.append(Row(columns, path.name, number))
        else:
            rows.append(None)
            message = f"it is {_json_type(columns)}; each entry of the list must be an object, such as {EXAMPLE_ROW}"
            problems.add("not an object", f"{path.name}, row {number}", message, columns)
    return rows


def _csv_rows(content: bytes, path: Path, delimiter: str, problems: ProblemLog) -> list[Row | None]:
    """Rows of a CSV file with a header.  Every value stays text: an answer such as 72 must not become a number."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row | None] = []
    header: list[str] | None = None
    first_line = 1
    for cells in _csv_lines(reader, path):
        where = f"{path.name}, line {first_line}"
        if header is None:
            header = cells
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise DataError(f"{where}: the header has {', '.join(map(repr, repeated))} more than once. Rename one.")
        elif len(cells) == len(header):
            rows.append(Row(dict(zip(header, cells, strict=True)), path.name, first_line, is_line=True))
        elif cells:
            rows.append(None)
            message = f"it has {len(cells)} values; the header has {len(header)} columns. Quote values with commas."
            problems.add("wrong number of values", where, message, delimiter.join(cells))
        first_line = reader.line_num + 1
    return rows


def _csv_lines(reader: Any, path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}. Is a quote left open?") from error


def _read_parquet(path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows.")
    places = pyarrow.array([f"{path.name}, row {number}" for number in range(table.num_rows)], pyarrow.string())
    return with_places(datasets.Dataset(datasets.table.InMemoryTable(table)), places)


def dataset_of(rows: Iterable[Row], *, with_where: bool = True) -> datasets.Dataset:
    """A data set of these rows, with every column that any of them has; a row without it has None there.

    Values of different types in one column are kept as they are (as JSON), so that a later check can name the row.

    Raises:
        DataError: values that no data set can hold.
    """
    import datasets
    import pyarrow

    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in rows] for name in names}
    try:
        dataset = datasets.Dataset.from_dict(columns, on_mixed_types="use_json")
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{rows[0].source}: the rows do not fit in one table: {error}") from error
    return with_places(dataset, [row.where for row in rows]) if with_where else dataset


def with_places(dataset: datasets.Dataset, places: Any) -> datasets.Dataset:
    """The data set with its rows' places in `WHERE_COLUMN`."""
    if WHERE_COLUMN in dataset.column_names:
        dataset = dataset.remove_columns(WHERE_COLUMN)
    return dataset.add_column(WHERE_COLUMN, places)


def _json_type(value: object) -> str:
    """The value's type in JSON's words, with an article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
