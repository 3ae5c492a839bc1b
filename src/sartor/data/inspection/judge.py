"""What can only be said when all rows are known: about lengths, and about rows that resemble one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.data.inspection.duplicates import RUN, THRESHOLD, DuplicateSearch, Group, extra_rows
from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.record import Lengths, Severity, rows
from sartor.records import DataSettings, DataSummary

LONG_FACTOR, LONG_TOKENS = 10, 2_048
"""A row is unusually long from this many times the median on, if it has so many tokens."""

Place = Callable[[int], str]
"""Takes the number of a usable row."""


def judge_lengths(
    ledger: Ledger, lengths: Lengths, summary: DataSummary, settings: DataSettings, context: int | None, place: Place
) -> None:
    """Note rows that are cut, emptied, longer than the model sees, or much longer than the others."""
    tokens = lengths.tokens

    def sights(is_named: NDArray[np.bool_]) -> Iterator[tuple[str, str]]:
        return ((place(number), f"{int(tokens[number]):,} tokens") for number in np.flatnonzero(is_named).tolist())

    limit = settings.max_length
    if limit is not None and summary.num_truncated_rows:
        ledger.say(
            "longer_than_max_length",
            Severity.WARNING,
            f"Longer than max_length={limit:,}: {summary.num_truncated_tokens:,} tokens are cut off, "
            f"{summary.num_truncated_targets:,} of them trained ones.",
            "See the table of lengths; raise max_length, or shorten the rows.",
            count=summary.num_truncated_rows,
            sights=sights(tokens > limit),
        )
    if context is not None and (tokens > context).any():
        ledger.say(
            "longer_than_context",
            Severity.WARNING,
            f"Longer than the {context:,} tokens that the model can see at once.",
            "Set max_length to that at most, or split the rows.",
            count=int(np.count_nonzero(tokens > context)),
            sights=sights(tokens > context),
        )
    if not len(tokens):
        return
    limit = max(LONG_TOKENS, LONG_FACTOR * int(np.median(tokens)))
    if (tokens >= limit).any():
        ledger.say(
            "unusually_long",
            Severity.NOTE,
            f"At least {LONG_FACTOR} times as long as half of the rows: {limit:,} tokens and more.",
            "Look whether these are one row each. Memory must hold the longest row.",
            count=int(np.count_nonzero(tokens >= limit)),
            sights=sights(tokens >= limit),
        )


def judge_emptied(ledger: Ledger, emptied: Sequence[int], settings: DataSettings, place: Place) -> None:
    """Note rows of which `max_length` leaves nothing that is trained."""
    if emptied:
        stops = settings.no_targets == "error"
        ledger.say(
            "no_targets_left",
            Severity.ERROR if stops else Severity.WARNING,
            f"max_length={settings.max_length} leaves nothing of the row that is trained: "
            + ("training stops (no_targets='error')." if stops else "it is dropped."),
            "Raise max_length, or shorten the prompts; truncation_mode says which end is cut.",
            count=len(emptied),
            sights=((place(number), "") for number in emptied),
        )


def judge_duplicates(ledger: Ledger, search: DuplicateSearch, asked: DuplicateSearch, row: Place, shown: Place) -> None:
    """Note equal rows, similar rows, and equal questions with different answers.

    Args:
        asked: the same rows, by what stands before the last answer.
        row: place of a row, by its number.
        shown: what to recognise it by.
    """
    equal = search.exact()
    if equal:
        ledger.say(
            "exact_duplicates",
            Severity.WARNING,
            f"The same as an earlier row ({rows(len(equal), 'group', 'groups')} of equal ones): what is repeated "
            "weighs more, and is learned by heart first.",
            "Remove the repetitions, unless their weight is meant.",
            count=extra_rows(equal),
            sights=_sights(equal, row, shown),
        )
    near = search.near()
    if near:
        ledger.say(
            "near_duplicates",
            Severity.WARNING,
            f"Nearly the same as an earlier row ({rows(len(near), 'group', 'groups')}): of all runs of {RUN} "
            f"characters {THRESHOLD:.0%} or more agree.",
            "Look at some groups; keep one of each where they say the same.",
            count=extra_rows(near),
            sights=_sights(near, row, shown),
        )
    numbers = {number for group in equal for number in group.rows[1:]}
    differing = [
        Group(kept) for group in asked.exact() if len(kept := [one for one in group.rows if one not in numbers]) > 1
    ]
    if differing:
        ledger.say(
            "same_question",
            Severity.NOTE,
            f"The same question as in an earlier row, with another answer ({rows(len(differing), 'group', 'groups')}).",
            "Fine where several answers are right; a contradiction teaches a coin toss.",
            count=extra_rows(differing),
            sights=_sights(differing, row, shown),
        )


def _sights(groups: Sequence[Group], row: Place, shown: Place) -> Iterator[tuple[str, str]]:
    """The first repetition of each group, and what it repeats."""
    for group in groups:
        first, second, *more = group.rows
        rest = f" and {len(more):,} more" if more else ""
        yield row(second), f"as {row(first)}{rest}: {shown(first)}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """What it means that rows stand elsewhere too."""

    exact: str
    """Kind of the finding."""
    near: str
    message: str
    """Behind `Exactly ` or `Nearly `; `{rows}` is the number of rows that were compared."""
    advice: str


EVALUATION = Overlap(
    "eval_in_train",
    "eval_near_train",
    "the same as a row that is trained on (of {rows} to evaluate on): the evaluation measures memory.",
    "Remove them from the training rows, or from the evaluation.",
)
SOURCES = Overlap(
    "in_other_source",
    "near_other_source",
    "the same as a row of another source (of {rows} here): what stands in several sources weighs more.",
    "Leave them out of one source, unless their weight is meant.",
)


def judge_overlap(
    ledger: Ledger,
    overlap: Overlap,
    others: Sequence[tuple[DuplicateSearch, Place]],
    own: tuple[DuplicateSearch, Place],
    shown: Place,
) -> None:
    """Note rows that stand elsewhere too, exactly or nearly.

    Args:
        others: search and places of the rows there, for each source of them.
        own: those of the rows here.
        shown: what to recognise a row here by.
    """
    search, row = own
    equal: dict[int, str] = {}
    near: dict[int, str] = {}
    for other, place in others:
        found = other.overlap(search)
        for known, pairs in zip((equal, near), found, strict=True):
            for there, here in pairs:
                known.setdefault(here, place(there))
    for kind, how, pairs_of in ((overlap.exact, "Exactly", equal), (overlap.near, "Nearly", near)):
        named = {here: there for here, there in sorted(pairs_of.items()) if pairs_of is equal or here not in equal}
        if named:
            ledger.say(
                kind,
                Severity.WARNING,
                f"{how} {overlap.message.format(rows=rows(search.num_rows))}",
                overlap.advice,
                count=len(named),
                sights=((row(here), f"as {there}: {shown(here)}") for here, there in named.items()),
            )
