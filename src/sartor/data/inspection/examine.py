"""Inspects a data set: reads it once, looks at every row's text and tokens, and says what is conspicuous.

What comes in: rows, a tokenizer, and the settings that a training run would have.  What goes out: an `Inspection`.
What it keeps true: rows are streamed; what is kept of each is some numbers, and of up to `duplicates.MAX_ROWS` rows a
sketch; the counts are those of a training run with the same options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.data.encoding import store
from sartor.data.encoding.counts import Counts
from sartor.data.encoding.request import Packer
from sartor.data.inspection.duplicates import DuplicateSearch
from sartor.data.inspection.judge import (
    EVALUATION,
    SOURCES,
    judge_duplicates,
    judge_emptied,
    judge_lengths,
    judge_overlap,
)
from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.lengths import LengthTally
from sartor.data.inspection.reading import Batch, RowReader
from sartor.data.inspection.record import Finding, Inspection, Sample, Severity, rows
from sartor.data.inspection.sample import sample_of
from sartor.data.inspection.texts import TextChecks, row_text
from sartor.data.inspection.token_checks import look_at_tokens
from sartor.data.inspection.written import look_at_written
from sartor.data.reading.places import Places
from sartor.data.reading.problems import excerpt
from sartor.data.rows.detection import FormattingFunction
from sartor.data.targets.audit import end_ids
from sartor.data.tokens.table import TokenRows
from sartor.records import IGNORE_INDEX, DataSettings, DataSummary

if TYPE_CHECKING:
    import datasets

EXCERPT_CHARACTERS = 100
NAMED_SAMPLES = 100
"""Rows that findings name and that are kept as samples."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an inspection needs to know besides the rows."""

    tokenizer: Any
    settings: DataSettings
    source: str = ""
    """What was given: a path or a Hub id."""
    model: str = ""
    formatting_func: FormattingFunction | None = None
    pack: Packer | None = None
    end_tokens: tuple[str, ...] = ()
    context: int | None = None
    """Tokens that the model can see at once, where that is known."""
    num_samples: int = 3
    options: tuple[tuple[str, str], ...] = ()
    """The data options that were given, for the record."""


class Examination:
    """One data set, row by row.  Usable rows are numbered from 0, in order."""

    def __init__(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        given: Given,
        name: str = "train",
        notes: tuple[str, ...] = (),
    ) -> None:
        """Find out what the rows are; `notes` tell how they were found.

        Raises:
            DataError: there are no rows, or their columns mean nothing to us.
            ConfigurationError: options that do not fit them.
        """
        self._given = given
        self._name = name
        self._notes = notes
        # Nothing is cut or packed here: what that would do is counted.
        whole = replace(given.settings, max_length=None, packing=False, shuffle_dataset=False)
        self._reader = RowReader(
            dataset, given.tokenizer, whole, name, formatting_func=given.formatting_func, end_tokens=given.end_tokens
        )
        self._mode = "keep_start" if given.settings.packing else given.settings.truncation_mode
        self._ledger = Ledger(name)
        self._texts = TextChecks(self._ledger, given.tokenizer.all_special_tokens, given.tokenizer.eos_token)
        self._ends = end_ids(given.tokenizer, given.end_tokens)
        self._tally = LengthTally(given.settings.max_length, self._mode, given.context)
        self._counts = Counts(name, self._reader.reading)
        self._kept_lengths: list[Any] = []
        self._kept_labels: list[Any] = []
        self._emptied: list[int] = []
        self._search = DuplicateSearch()
        self._asked = DuplicateSearch(max_rows=0)
        self._places: list[str] = []
        self._example_places: list[str] = []
        self._excerpts: list[str] = []
        self._wanted = _spread(len(dataset) if hasattr(dataset, "__len__") else None, given.num_samples)
        self._samples: list[tuple[bool, Sample]] = []
        self._bad_messages: dict[str, str] = {}

    def run(self, train: Sequence[Examination] = (), before: Sequence[Examination] = ()) -> Inspection:
        """Read all rows; what was found.

        Args:
            train: the sources of the training rows, where these are to evaluate on, already run.
            before: the sources that stand before this one, where these are one of several to train on, already run.
        """
        for batch in self._reader.batches(self._bad_row):
            self._look_at(batch)
        self._texts.finish()
        lengths, summary = self._tally.result(), self._summary()
        settings = self._given.settings
        if not settings.packing:
            judge_emptied(self._ledger, self._emptied, settings, self._example_places.__getitem__)
        place = self._example_places.__getitem__
        judge_lengths(self._ledger, lengths, summary, settings, self._given.context, place)
        judge_duplicates(self._ledger, self._search, self._asked, self._places.__getitem__, self._excerpt)
        own = (self._search, self._places.__getitem__)
        for others, overlap in ((train, EVALUATION), (before, SOURCES)):
            found = [(other._search, other._places.__getitem__) for other in others]
            judge_overlap(self._ledger, overlap, found, own, self._excerpt)
        self._judge_whole(summary)
        findings = self._ledger.findings()
        return Inspection(
            self._name,
            self._given.source,
            self._given.model,
            summary,
            lengths,
            findings,
            self._shown(findings),
            self._searched(),
            dict(self._given.options),
        )

    def _bad_row(self, kind: str, where: str, message: str, row: Any) -> None:
        skips = self._given.settings.bad_rows == "skip"
        first = self._bad_messages.setdefault(kind, message)
        # What a template says when it refuses a row may be another thing for each.
        shown = row if message == first else f"{message} {excerpt(row, EXCERPT_CHARACTERS)}"
        self._ledger.see(
            "bad_row",
            Severity.WARNING if skips else Severity.ERROR,
            f"{kind[:1].upper()}{kind[1:]}: {message}",
            "Training leaves these rows out." if skips else "Mend or remove these rows: training stops at them.",
            where=where,
            shown=shown,
            variant=kind,
        )

    def _look_at(self, batch: Batch) -> None:
        """One batch of usable rows."""
        self._tally.add(batch.encoded)
        self._count(batch.encoded, batch.example_places)
        look_at_written(batch, self._given.tokenizer, self._ledger)
        look_at_tokens(batch, self._given.tokenizer, self._ends, self._ledger)
        ids = _ids_by_place(batch) if batch.rows[0] is None else {}
        for where, row in zip(batch.places, batch.rows, strict=True):
            asked, shown = "", ""
            if row is None:
                self._search.add(ids[where], "")
            else:
                text = row_text(row)
                self._texts.look(text, where)
                asked, shown = text.asked, text.near()
                self._search.add(text.whole, shown)
            self._asked.add(asked or f"row {len(self._places)}", "")
            self._places.append(where)
            if len(self._places) <= self._search.max_rows:
                self._excerpts.append(shown[:EXCERPT_CHARACTERS])
        self._keep_samples(batch)

    def _keep_samples(self, batch: Batch) -> None:
        """Samples of the rows that are wanted, or that a finding has named by now."""
        wanted = {where for index, where in zip(batch.indices, batch.places, strict=True) if index in self._wanted}
        for where, (start, end) in zip(batch.example_places, pairwise(batch.encoded.offsets.tolist()), strict=True):
            is_named = where in self._ledger.named and len(self._samples) < NAMED_SAMPLES
            if where in wanted or is_named:
                self._samples.append((where in wanted, self._sample(where, batch.encoded, start, end)))

    def _count(self, encoded: TokenRows, places: Sequence[str]) -> None:
        """What a training run would count of these examples."""
        settings = self._given.settings
        if settings.max_length is not None and not settings.packing:
            longer = np.flatnonzero(encoded.lengths > settings.max_length)
            left = encoded.take(longer).truncate(settings.max_length, self._mode)
            is_emptied = ~left.has_labels & encoded.has_labels[longer]
            self._emptied.extend((len(self._example_places) + longer[is_emptied]).tolist())
        self._example_places.extend(places)
        dropping = replace(settings, no_targets="drop")  # where it is an error, that is a finding, and not the end
        kept, _ = self._counts.cut(encoded, Places.of_texts(places), dropping)
        self._kept_lengths.append(kept.lengths)
        if settings.packing:  # then what is a target depends on where blocks begin
            self._kept_labels.append(np.where(kept.labels == IGNORE_INDEX, np.int8(IGNORE_INDEX), np.int8(0)))

    def _summary(self) -> DataSummary:
        """The counts that open a training run with the same options, by the same code."""
        given, reader = self._given, self._reader
        lengths = np.concatenate([np.zeros(0, np.int64), *self._kept_lengths])
        how = store.arrangement(lengths, given.settings, given.pack)
        self._counts.tally = reader.tally
        if given.settings.bad_rows == "skip":
            self._counts.problems = reader.problems
        return self._counts.summary(
            reader.encoder,
            how,
            self._counts.foreseen(self._kept_labels, lengths, how),
            num_rows=reader.num_rows,
            notes=(*self._notes, *self._unusable()),
        )

    def _unusable(self) -> tuple[str, ...]:
        """What to say where a training run would stop, and the counts are those of the rows that can be used."""
        if not self._reader.problems or self._given.settings.bad_rows == "skip":
            return ()
        return (
            f"{rows(len(self._reader.problems.bad_places))} cannot be used: a training run would stop, and say so.",
        )

    def _judge_whole(self, summary: DataSummary) -> None:
        """What concerns the data set as a whole."""
        unused = self._reader.reading.unused_columns
        if unused:
            self._ledger.say(
                "unused_columns",
                Severity.NOTE,
                f"Columns that are not used: {', '.join(unused)}.",
                "Fine, unless one of them should be trained: --map makes messages of any columns.",
            )
        if self._example_places and not self._counts.kept_labels:
            self._ledger.say(
                "nothing_trained",
                Severity.ERROR,
                "No token of any row is trained.",
                "Look at the rows above, at max_length and at the options of the loss.",
            )
        elif 0 < self._counts.kept_labels == self._counts.kept.num_tokens and self._reader.reading.is_conversational:
            self._ledger.say(
                "everything_trained",
                Severity.NOTE,
                "All tokens are trained, questions too.",
                "Set assistant_only_loss to train the answers alone.",
            )

    def _sample(self, where: str, encoded: TokenRows, start: int, end: int) -> Sample:
        settings = self._given.settings
        return sample_of(
            where,
            encoded.input_ids[start:end].tolist(),
            encoded.labels[start:end].tolist(),
            self._given.tokenizer,
            max_length=settings.max_length if not settings.packing or settings.packing_strategy == "bfd" else None,
            mode=self._mode,
        )

    def _shown(self, findings: Sequence[Finding]) -> tuple[Sample, ...]:
        """The samples with the findings that name them, those that were asked for first."""
        kinds: dict[str, list[str]] = {}
        for finding in findings:
            for sight in finding.first:
                if finding.kind not in (known := kinds.setdefault(sight.where, [])):
                    known.append(finding.kind)
        ordered = sorted(self._samples, key=lambda pair: not pair[0])
        return tuple(replace(sample, findings=tuple(kinds.get(sample.where, ()))) for _, sample in ordered)

    def _excerpt(self, number: int) -> str:
        return self._excerpts[number] if number < len(self._excerpts) else ""

    def _searched(self) -> str:
        search = self._search
        said = f"Exact duplicates were looked for in all {rows(search.num_rows)}"
        if search.num_searched < search.num_rows:
            return f"{said}, near ones in the first {search.num_searched:,}."
        return f"{said}, near ones too."


def _ids_by_place(batch: Batch) -> dict[str, str]:
    """Each row's ids as text, for rows that came tokenized: what duplicates have in common."""
    ids = batch.encoded.input_ids
    offsets = pairwise(batch.encoded.offsets.tolist())
    return {
        where: ids[start:end].tobytes().hex() for where, (start, end) in zip(batch.example_places, offsets, strict=True)
    }


def _spread(num_rows: int | None, wanted: int) -> frozenset[int]:
    """Numbers of so many rows, evenly spread; the first ones of a stream, whose end nobody knows."""
    if num_rows is None or wanted >= num_rows:
        return frozenset(range(wanted))
    return frozenset(round(number * (num_rows - 1) / max(1, wanted - 1)) for number in range(wanted))
