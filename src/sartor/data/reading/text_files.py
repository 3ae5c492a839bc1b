"""Reads text files of rows, one line after another: JSON lines, JSON and CSV, each also packed.

What comes in: a path and the name its rows are known by.  What goes out: a `Row`, or a `Problem` in its place, for
everything that stands there.  What it keeps true: every line is read and becomes a row or a problem; nothing is skipped
but blank lines.  Where one mistake leaves the rest of a file without meaning (a quote left open, a bracket missing) the
file is refused as a whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sartor.data.reading.problems import excerpt
from sartor.errors import DataError
from sartor.records import Problem, Row

EXAMPLE_ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some Windows programs write at the start of a file."""

OPENERS: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open}
"""What unpacks a packed file, by the suffix that stands behind the one of its kind."""

Rows = Iterator[Row | Problem]


def packing_of(path: Path) -> str:
    """The suffix that says how a file is packed; empty where it is not."""
    return next((suffix for suffix in OPENERS if path.name.lower().endswith(suffix)), "")


def read_text(path: Path, suffix: str, name: str) -> Rows:
    """Rows of a text file in order, each line read when it is asked for.

    Args:
        suffix: the kind of file, one of `files.SUFFIXES`.
        name: what the rows' places call the file.

    Raises:
        DataError: the file has no meaning as a whole.
        OSError, EOFError: it cannot be read, or is cut off.
    """
    with _opened(path) as stream:
        if suffix in (".csv", ".tsv"):
            yield from _csv_rows(stream, path, name, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json" and not _is_lines(path):
            yield from _json_rows(stream.read(), path, name)
        else:
            yield from _jsonl_rows(stream, name)


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes behind a byte order mark, unpacked."""
    packing = packing_of(path)
    stream: Any = OPENERS[packing](path) if packing else path.open("rb")
    try:
        if stream.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            stream.seek(0)
    except BaseException:
        stream.close()
        raise
    opened: IO[bytes] = stream
    return opened


def _is_lines(path: Path) -> bool:
    """Whether a `.json` file is really one object per line, as many are."""
    with _opened(path) as stream:
        filled = (line for line in stream if line.strip())
        first, second = next(filled, b""), next(filled, b"")
    if not first.lstrip().startswith(b"{") or not second:
        return False
    try:
        json.loads(first)
    except ValueError:
        return False
    return True


def _jsonl_rows(stream: IO[bytes], name: str) -> Rows:
    for number, raw in enumerate(stream, 1):
        if raw.strip():
            # A last line without its newline may lack more than that.
            yield _jsonl_row(raw.rstrip(b"\r\n"), name, number, is_cut_off=not raw.endswith(b"\n"))


def _jsonl_row(raw: bytes, name: str, number: int, *, is_cut_off: bool) -> Row | Problem:
    where = f"{name}, line {number}"
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8."
        return Problem("not UTF-8", where, message, excerpt(raw.decode("utf-8", errors="replace")))
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        at = f"{error.msg} at column {error.colno}"
        if is_cut_off:
            message = f"{at}, and no newline after it. Was the file copied or written whole?"
            return Problem("the last line ends in the middle", where, message, excerpt(line))
        return Problem("not JSON", where, f"{at}. Each line must be one JSON object.", excerpt(line))
    except RecursionError:
        return Problem("not JSON", where, "it is nested too deeply to be read.", excerpt(line))
    if not isinstance(columns, dict):
        message = f"it is {json_type(columns)}. Each line must be one JSON object, such as {EXAMPLE_ROW}"
        return Problem("not an object", where, message, excerpt(line))
    if "\\ud" in line or "\\uD" in line:
        try:
            json.dumps(columns, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            message = "it has half a character (a lone surrogate such as \\ud83d), which no text may hold."
            return Problem("half a character", where, message, excerpt(line))
    return Row(columns, name, number, is_line=True)


def _json_rows(content: bytes, path: Path, name: str) -> Rows:
    """Rows of a file that is one JSON list of objects."""
    value = _json_list(content, path)
    for number, columns in enumerate(value):
        if isinstance(columns, dict):
            yield Row(columns, name, number)
        else:
            message = f"it is {json_type(columns)}; each entry of the list must be an object, such as {EXAMPLE_ROW}"
            yield Problem("not an object", f"{name}, row {number}", message, excerpt(columns))


def _json_list(content: bytes, path: Path) -> list[Any]:
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
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [
            key for key, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)
        ]
        hint = f" Its rows seem to be under {lists[0]!r}: save that list alone." if lists else ""
        raise DataError(f"{path} holds one object, not a list of rows.{hint}")
    raise DataError(f"{path} holds {json_type(value)}, not a list of rows.")


def _csv_rows(stream: IO[bytes], path: Path, name: str, delimiter: str) -> Rows:
    """Rows of a CSV file with a header.  Every value stays text: an answer such as 72 must not become a number."""
    # Bytes that are not UTF-8 become lone surrogates, by which their row is known.
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    first_line = 1
    for cells in _csv_lines(reader, path):
        where = f"{name}, line {first_line}"
        is_text = all(cell.isascii() or _is_text(cell) for cell in cells)
        if header is None:
            header = _csv_header(cells, where, is_text=is_text)
        elif cells and not is_text:
            shown = delimiter.join(cells).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            yield Problem("not UTF-8", where, "a value is not UTF-8. Save the file as UTF-8.", excerpt(shown))
        elif len(cells) == len(header):
            yield Row(dict(zip(header, cells, strict=True)), name, first_line, is_line=True)
        elif cells:
            message = f"it has {len(cells)} values; the header has {len(header)} columns. Quote values with commas."
            yield Problem("wrong number of values", where, message, excerpt(delimiter.join(cells)))
        first_line = reader.line_num + 1


def _csv_header(cells: list[str], where: str, *, is_text: bool) -> list[str]:
    if not is_text:
        raise DataError(f"{where}: the header is not UTF-8. Save the file as UTF-8.")
    repeated = sorted({cell for cell in cells if cells.count(cell) > 1})
    if repeated:
        raise DataError(f"{where}: the header has {', '.join(map(repr, repeated))} more than once. Rename one.")
    return cells


def _is_text(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_lines(reader: Any, path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    first_line = 1
    try:
        for cells in reader:
            yield cells
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not CSV: {error}. Is a quote left open? The row begins in line "
            f"{first_line}."
        ) from error


def json_type(value: object) -> str:
    """The value's type in JSON's words, with an article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
