"""Shows prepared data: lengths as a histogram, what was counted, and text that cannot command a terminal.

What comes in: prepared data, lengths, a summary or text.  What goes out: text for a terminal.  What it keeps true:
lengths are those of the ids that are trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sartor.errors import DataError
from sartor.records import DataSummary, Example

if TYPE_CHECKING:
    import datasets

NEWLINE_MARK = "↵"
LONG_TAIL = 2.0
"""From this many times the length of 99 % of the rows on, a row is far out."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
BLOCKS = " ▏▎▍▌▋▊▉█"


def lengths_of(dataset: datasets.Dataset) -> NDArray[np.int64]:
    """Tokens of each row of a prepared data set, read off the table without loading the ids.

    Raises:
        DataError: the data set is not prepared, or is a stream.
    """
    import datasets
    import pyarrow.compute

    if not isinstance(dataset, datasets.Dataset) or "input_ids" not in dataset.column_names:
        raise DataError("Lengths can be read from a prepared Dataset with input_ids; prepare the data first.")
    column = dataset.with_format("arrow")[:]["input_ids"]
    return pyarrow.compute.list_value_length(column).to_numpy().astype(np.int64)


def example_of(dataset: datasets.Dataset, number: int) -> Example:
    """Row `number` of a prepared data set."""
    row = dataset[number]
    return Example(row["input_ids"], row["labels"], tuple(row.get("seq_lengths") or ()))


def length_histogram(
    lengths: Sequence[int] | NDArray[np.int64], width: int = 72, *, num_bars: int = 12, max_length: int | None = None
) -> str:
    """A histogram of lengths for a terminal of `width` columns, with the quantiles below it.

    Bars are of equal width in tokens, but for the last, which has no end where few rows are much longer than the rest.
    With `max_length`, says how many rows are longer.

    Worked example: lengths 3, 3, 9 in two bars are `3-6 | 2` and `7-10 | 1`.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    if not len(counts):
        return "no rows"
    bars = length_bars(counts, num_bars)
    last = max(len(str(bars[-1].end)), len(str(bars[-1].start)))
    labels = [
        f"{bar.start:>{last}}-{bar.end:<{last}}" if bar.end else f"{bar.start:>{last}}+{'':{last}}" for bar in bars
    ]
    most = max(bar.num_rows for bar in bars)
    room = max(8, width - len(labels[0]) - len(f"{most:,}") - 2)
    lines = [
        f"{label} {_bar(bar.num_rows / most, room)} {bar.num_rows:,}" for label, bar in zip(labels, bars, strict=True)
    ]
    lines.append(f"tokens: {spread(counts)}")
    if max_length is not None:
        num_longer = int(np.count_nonzero(counts > max_length))
        lines.append(f"longer than max_length={max_length:,}: {num_longer:,} of {len(counts):,} rows")
    return "\n".join(lines)


def spread(lengths: NDArray[np.int64]) -> str:
    """Mean and quantiles in words; each quantile is a length that occurs."""
    half, most, nearly_all = (int(np.quantile(lengths, share, method="higher")) for share in (0.5, 0.9, 0.99))
    return (
        f"mean {lengths.mean():,.0f}, median {half:,}, 90 % up to {most:,}, 99 % up to {nearly_all:,}, "
        f"longest {int(lengths.max()):,}"
    )


@dataclass(frozen=True, slots=True)
class LengthBar:
    """One bar of a histogram of lengths."""

    start: int
    end: int | None
    """The last length in it; None: there is no last one."""
    num_rows: int


def length_bars(lengths: NDArray[np.int64], num_bars: int) -> list[LengthBar]:
    """Rows by length, in about so many bars of equal width.

    Where the longest row is more than `LONG_TAIL` times as long as 99 % of the rows, the last bar takes all from there
    on: bars up to one row far out would put all others into one.

    Worked example: 3, 3, 9 in two bars are 3 to 6 (2 rows) and 7 to 10 (1 row).
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    usual = int(LONG_TAIL * np.quantile(lengths, 0.99, method="higher"))
    shown = min(longest, usual)
    step = max(1, -(-(shown - shortest + 1) // num_bars))
    starts = list(range(shortest, shown + 1, step))
    counts = np.bincount(np.minimum((lengths - shortest) // step, len(starts) - 1), minlength=len(starts)).tolist()
    ends: list[int | None] = [start + step - 1 for start in starts]
    if longest > usual:
        ends[-1] = None
    return [LengthBar(*bar) for bar in zip(starts, ends, counts, strict=True)]


def _bar(share: float, columns: int) -> str:
    """A bar in eighths of a character; a share above 0 is never invisible."""
    eighths = round(share * columns * 8)
    if share > 0:
        eighths = max(1, eighths)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (BLOCKS[rest] if rest else "")


def describe(summary: DataSummary) -> str:
    """The few lines that open a run: format, counts, what was cut or dropped, and what is worth knowing."""
    if not summary.num_examples and not summary.num_rows:
        lines = [f"{summary.name}: a stream of {summary.format} rows"]
    else:
        rows, examples = f"{summary.num_rows:,} rows of {summary.format}", f"{summary.num_examples:,} examples"
        counts = rows if summary.num_rows == summary.num_examples else f"{rows}, {examples}"
        share = summary.num_targets / max(1, summary.num_tokens)
        lines = [
            f"{summary.name}: {counts}; {summary.num_tokens:,} tokens, of which {summary.num_targets:,} are trained "
            f"({share:.0%}); longest {summary.longest_tokens:,}"
        ]
    if summary.num_truncated_rows:
        lines.append(
            f"  cut: {summary.num_truncated_rows:,} rows lost {summary.num_truncated_tokens:,} tokens, "
            f"{summary.num_truncated_targets:,} of them trained ones"
        )
    if summary.num_skipped_rows:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.skipped_kinds.items())
        lines.append(f"  skipped: {summary.num_skipped_rows:,} rows that cannot be used ({kinds})")
    if summary.num_dropped_rows:
        lines.append(f"  dropped: {summary.num_dropped_rows:,} rows of which nothing that is trained was left")
    lines.extend(f"  {note}" for note in summary.notes)
    return "\n".join(lines)


def visible(text: str) -> str:
    """The text without characters that command a terminal or turn the reading direction: their code stands instead.

    Tabs and newlines stay, and the joiners that emoji and some scripts are written with.  Rows are other people's
    text: an escape sequence in one must not reach the terminal.
    """
    return _CONTROL.sub(lambda match: f"‹{ord(match[0]):02X}›", text)


def marked(text: str) -> str:
    """Visible text with a mark at line ends, so that one sees whether they are trained."""
    return visible(text).replace("\n", f"{NEWLINE_MARK}\n")
