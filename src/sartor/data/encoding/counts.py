"""Counts what becomes of rows while they are cut, and makes the summary of it: for a training run and for `inspect`.

What comes in: encoded rows, part by part.  What goes out: the rows that are kept, and at the end a `DataSummary`.  What
it keeps true: every row, token and target that is lost is in the summary, and it is the same whoever counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.encoding.cutting import cut
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.parts import Part
from sartor.data.encoding.store import Arrangement, Integers, Written, arranged
from sartor.data.reading.places import Places
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading
from sartor.data.targets.audit import add_counts
from sartor.data.tokens.table import TokenRows
from sartor.errors import DataError
from sartor.records import IGNORE_INDEX, DataSettings, DataSummary, Packing, RowFormat

Labels = NDArray[Any]
"""Labels of tokens, or anything else that is -100 where they are."""


class Counts:
    """What is known of all rows of one data set that were encoded so far, and what cutting them cost."""

    def __init__(self, name: str, reading: Reading) -> None:
        self._name = name
        self._reading = reading
        self._lost: Counter[str] = Counter()
        self.num_rows = 0
        self.longest_tokens = 0
        self.has_labels = False
        self.kept = Written()
        """Of the rows that are left, before they are arranged."""
        self.kept_labels = 0
        """Of their tokens, those that are labelled: the targets, and first tokens that nothing predicts."""
        self.source_rows: Counter[str] = Counter()
        self.problems = ProblemLog()
        """What is wrong with the rows that are left out."""
        self.tally: Counter[str] = Counter()

    def note(self, part: Part) -> None:
        """Add what was noted and counted while one part was encoded."""
        self.problems.update(part.problems)
        add_counts(self.tally, part.tally)

    def cut(self, rows: TokenRows, places: Places, settings: DataSettings) -> tuple[TokenRows, Places]:
        """Cut some more rows, and count them.

        Raises:
            DataError: nothing is left of a row, where `no_targets="error"`.
        """
        self.num_rows += len(rows)
        self.longest_tokens = max(self.longest_tokens, int(rows.lengths.max(initial=0)))
        self.has_labels = self.has_labels or bool(rows.has_labels.any())
        self.source_rows.update((places.once_each() if settings.unroll else places).counts())
        is_tokenized = self._reading.format is RowFormat.TOKENIZED
        rows, places, cost = cut(rows, places, settings, name=self._name, is_tokenized=is_tokenized)
        self.kept.count(rows)
        self.kept_labels += int(np.count_nonzero(rows.labels != IGNORE_INDEX))
        self._lost.update(cost)
        return rows, places

    def check(self, settings: DataSettings) -> None:
        """See that something is left to train.

        Raises:
            DataError: nothing is.
        """
        if not self.has_labels:
            raise DataError(
                f"{self._name} data: no token of any of the {self.num_rows:,} rows is trained: all labels are -100."
            )
        if not self.kept_labels:
            raise DataError(
                f"{self._name} data: with max_length={settings.max_length} and "
                f"truncation_mode={settings.truncation_mode} nothing that is trained is left of any of the "
                f"{self.num_rows:,} rows; the longest has {self.longest_tokens:,} tokens. Raise max_length, or try the "
                "other truncation_mode."
            )

    def summary(
        self,
        encoder: Encoder,
        how: Arrangement,
        written: Written,
        *,
        num_rows: int,
        notes: tuple[str, ...] = (),
    ) -> DataSummary:
        """Everything about the data set.

        Args:
            how: how examples were arranged.
            written: what the examples hold.
            num_rows: that were read, whatever became of them.
            notes: what else to say.
        """
        notes = (*self._reading.notes, *encoder.notes(self.tally), *notes, *mixing_notes(how))
        return DataSummary(
            self._name,
            self._reading.format,
            num_rows,
            **written.counts(),
            **self._lost,
            notes=notes + tuple(f"skipped: {told}" for told in self.problems.told()),
            num_skipped_rows=len(self.problems.bad_places),
            skipped_kinds=self.problems.counts,
            source_rows=dict(self.source_rows),
        )

    def foreseen(self, labels: Sequence[Labels], lengths: Integers, how: Arrangement) -> Written:
        """What would be written of the rows that were kept, without writing it.

        Args:
            labels: of the tokens of those rows, in order; they are looked at where rows are packed.
            lengths: tokens of each row.
            how: how they would be arranged.
        """
        if not isinstance(how, Packing):
            return self.kept
        flat = np.concatenate([np.zeros(0, np.int8), *labels])
        rows = TokenRows(flat, flat, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        written = Written()
        for part in arranged(rows, how):
            written.count(part)
        return written


def mixing_notes(how: Arrangement) -> tuple[str, ...]:
    """What wrapped blocks mix."""
    if not isinstance(how, Packing) or how.keeps_documents:
        return ()
    num_blocks = len(how.pieces_per_block)
    num_mixed = int((how.pieces_per_block > 1).sum())
    num_cut = len(how.rows) - len(np.unique(how.rows))
    return (
        f"packing_strategy='wrapped': {num_mixed:,} of {num_blocks:,} blocks are one running text of several rows, "
        f"whose tokens see the rows before them, and rows are cut in {num_cut:,} places. 'bfd_split' mixes nothing.",
    )
