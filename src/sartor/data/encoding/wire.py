"""What this process and its workers send each other: JSON, and arrays as they are.  Nothing is pickled.

What comes in: records.  What goes out: messages of a length, a head of JSON and the bytes of arrays; and the records
again at the other end.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sartor import errors
from sartor.data.encoding.parts import Part
from sartor.data.encoding.table import TokenRows
from sartor.data.reading.places import Places
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading
from sartor.data.rows.kinds import Kind
from sartor.records import DataSettings, RowFormat

_LENGTHS = struct.Struct("<QQ")


def send(pipe: IO[bytes], head: Any, content: Any = b"") -> None:
    """One message: a head that JSON can hold, and bytes."""
    text = json.dumps(head).encode()
    content = memoryview(content).cast("B")
    pipe.write(_LENGTHS.pack(len(text), len(content)))
    pipe.write(text)
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Any, bytes]:
    """One message.

    Raises:
        EOFError: the other end is closed.
    """
    lengths = [*_LENGTHS.unpack(_read(pipe, _LENGTHS.size))]
    text, content = (_read(pipe, length) for length in lengths)
    return json.loads(text), content


def _read(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What a worker makes its `Encoder` of."""

    backend: str
    """The tokenizer as tokenizer.json has it."""
    tokenizer_options: Mapping[str, Any]
    state: Mapping[str, Any]
    """`keys.tokenizer_state` of the tokenizer here, which the worker's own must equal."""
    reading: Reading
    settings: DataSettings
    end_tokens: Sequence[str]
    name: str
    features: Mapping[str, Any]
    """Of the rows, as `datasets` writes them."""

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        assert self.reading.formatting_func is None
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WorkOrder:
        """The order again."""
        reading = {name: _as_tuples(value) for name, value in content["reading"].items()}
        reading["format"] = RowFormat(reading["format"])
        reading["kind"] = None if reading["kind"] is None else Kind(reading["kind"])
        settings = DataSettings(**{name: _as_tuples(value) for name, value in content["settings"].items()})
        return replace(cls(**content), reading=Reading(**reading), settings=settings)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one batch."""

    part: Part
    problems: ProblemLog
    tally: Counter[str]


def answer_message(answer: Answer) -> tuple[dict[str, Any], bytes]:
    """An answer as a message."""
    rows, places = answer.part.rows, answer.part.places
    documents = rows.documents
    arrays: dict[str, NDArray[Any] | None] = {
        "ids": rows.input_ids,
        "labels": rows.labels,
        "offsets": rows.offsets,
        "weights": rows.weights,
        "documents": None if documents is None else np.array([n for row in documents for n in row], np.int64),
        "counts": None if documents is None else np.array([len(row) for row in documents], np.int64),
        "sources": places.source_numbers,
        "rows": places.row_numbers,
    }
    assert places.offsets is None
    present = {name: array for name, array in arrays.items() if array is not None}
    head = {
        "arrays": [(name, array.dtype.str, len(array)) for name, array in present.items()],
        "sources": places.sources,
        "problems": answer.problems.to_json(),
        "tally": answer.tally,
    }
    return head, b"".join(np.ascontiguousarray(array).data for array in present.values())


def answer_of(head: Mapping[str, Any], content: bytes) -> Answer:
    """The answer in a message.

    Raises:
        SartorError: the error that the worker sends instead.
        RuntimeError: a defect, with what happened there.
    """
    if "error" in head:
        raise _error_of(head["error"])
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for name, kind, length in head["arrays"]:
        arrays[name] = np.frombuffer(content, kind, length, start)
        start += arrays[name].nbytes
    documents = None
    if "documents" in arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        documents = [row.tolist() for row in np.split(arrays["documents"], ends)] if len(arrays["counts"]) else []
    rows = TokenRows(arrays["ids"], arrays["labels"], arrays["offsets"], documents, arrays.get("weights"))
    sources = tuple((source, kind) for source, kind in head["sources"])
    part = Part(rows, Places(sources, arrays["sources"], arrays["rows"]))
    return Answer(part, ProblemLog.from_json(head["problems"]), Counter(head["tally"]))


def error_message(error: Exception, trace: str) -> dict[str, Any]:
    """An error as a message."""
    return {"error": {"type": type(error).__name__, "text": str(error), "trace": trace}}


def _error_of(content: Mapping[str, str]) -> Exception:
    """A user error as it was; anything else is a defect, and is told with its traceback."""
    kind = getattr(errors, content["type"], None)
    if isinstance(kind, type) and issubclass(kind, errors.SartorError):
        return kind(content["text"])
    return RuntimeError(f"a process that prepares the data failed:\n{content['trace']}")
