"""Reads and encodes rows batch by batch, and goes on past those that cannot be used.

What comes in: a data set and options.  What goes out: batches of checked rows with their tokens, nothing of them cut.
What it keeps true: rows, tokens and problems are those that `encode.prepare` would have, and every row is either in a
batch or a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.encode import reading_of
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.parts import ROWS_PER_BATCH, Part, encoding_part
from sartor.data.reading.problems import ProblemLog
from sartor.data.reading.tables import batches_of
from sartor.data.rows.detection import FormattingFunction
from sartor.data.rows.formats import TrainingRow, convert
from sartor.data.targets.audit import add_counts
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import Tokenization, run_ahead
from sartor.records import DataSettings, RowFormat

if TYPE_CHECKING:
    import datasets

Report = Callable[[str, str, str, Any], None]
"""Takes kind, place, message and row of a problem."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Neighbouring usable rows, and the examples made of them: one each, or with `unroll` one per answer."""

    indices: Sequence[int]
    """Each row's number in the data set, from 0."""
    places: Sequence[str]
    """Where each row stands."""
    rows: Sequence[TrainingRow | None]
    """None: tokenized already."""
    encoded: TokenRows
    """The examples."""
    example_places: Sequence[str]
    """Where the row of each example stands."""


@dataclass(frozen=True, slots=True)
class _Raw:
    """Neighbouring rows as they were read."""

    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    first: int
    """Number of the first one in the data set."""


class _Log(ProblemLog):
    """A problem log of a batch, which keeps all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, str, str, Any]] = []

    def add(self, kind: str, where: str, message: str, row: object = None) -> None:
        super().add(kind, where, message, row)
        self.entries.append((kind, where, message, row))

    def update(self, other: ProblemLog) -> None:
        super().update(other)
        self.entries += other.entries if isinstance(other, _Log) else ()


class RowReader:
    """Reads one data set."""

    def __init__(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        tokenizer: Any,
        settings: DataSettings,
        name: str,
        *,
        formatting_func: FormattingFunction | None = None,
        end_tokens: Sequence[str] = (),
    ) -> None:
        """Find out what the rows are.

        Raises:
            DataError: there are no rows, or their columns mean nothing to us.
            ConfigurationError: options that do not fit them.
        """
        self._dataset = dataset.with_format(None)
        self._name = name
        _, self.reading = reading_of(self._dataset, tokenizer, settings, name=name, formatting_func=formatting_func)
        self.encoder = Encoder(tokenizer, self.reading, settings, end_tokens)
        self.num_rows = 0
        """Rows read so far, bad ones too."""
        self.problems = ProblemLog()
        """What is wrong with those that cannot be used."""
        self.tally: Counter[str] = Counter()
        """What is counted of the others (see `Encoder`)."""

    def batches(self, report: Report) -> Iterator[Batch]:
        """Usable rows in order; what is wrong with the others goes to `report`."""
        with closing(run_ahead(self._works(), self.encoder.tokenize)) as results:
            for raw, part in results:
                self.num_rows += len(raw.rows)
                self.problems.update(part.problems)
                add_counts(self.tally, part.tally)
                yield from self._usable(raw, part, report)

    def _works(self) -> Iterator[Tokenization[tuple[_Raw, Part]]]:
        first = 0
        for rows, places in batches_of(self._dataset, ROWS_PER_BATCH, self._name):
            yield self._work(_Raw(rows, places, first))
            first += len(rows)

    def _work(self, raw: _Raw) -> Tokenization[tuple[_Raw, Part]]:
        part = yield from encoding_part(self.encoder, raw.rows, raw.places, _Log())
        return raw, part

    def _usable(self, raw: _Raw, part: Part, report: Report) -> Iterator[Batch]:
        """The rows of a batch that have no problem, if there are any."""
        assert isinstance(part.problems, _Log)
        numbers = {where: number for number, where in enumerate(raw.places)}
        for problem in sorted(part.problems.entries, key=lambda problem: numbers[problem[1]]):
            report(*problem)
        bad = part.problems.bad_places
        good = [number for number, where in enumerate(raw.places) if where not in bad]
        if good:
            rows, places = [raw.rows[number] for number in good], [raw.places[number] for number in good]
            indices = [raw.first + number for number in good]
            yield Batch(indices, places, self._converted(rows, places), part.rows, part.places.first_rows())

    def _converted(self, rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[TrainingRow | None]:
        if self.reading.format is RowFormat.TOKENIZED:
            return [None] * len(rows)
        log = ProblemLog()
        return [convert(row, where, self.reading, log) for row, where in zip(rows, places, strict=True)]
