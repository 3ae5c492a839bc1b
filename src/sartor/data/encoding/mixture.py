"""Several sources as one data set, mixed by weights or one after the other.

What comes in: sources with their weights.  What goes out: `PreparedData`.  What it keeps true: each source is read and
prepared by its own format's rules, and its examples are mixed afterwards, so that text and conversations can be mixed
and each keeps its targets; the order depends on the seed alone; how many rows of each were taken is said; each example
keeps its own file and line.

Weights are shares: after each example the next source is drawn with a probability in proportion to its weight, as
`datasets.interleave_datasets` does.  Worked example: weights 0.7 and 0.3 take about 7 rows of the first source for 3 of
the second, until `until` ends it.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.encoding.cutting import LOSSES
from sartor.data.encoding.store import MADE, Written
from sartor.data.reading import sources
from sartor.data.reading.places import Places
from sartor.data.reading.sources import Source
from sartor.data.reading.tables import ROWS_PER_CHUNK, WHERE_COLUMN
from sartor.data.rows.detection import recognise
from sartor.data.tokens.table import TokenRows
from sartor.errors import ConfigurationError, DataError, HubError, SartorError
from sartor.records import DataSettings, DataSummary, PreparedData, RowFormat

if TYPE_CHECKING:
    import datasets

Prepare = Callable[[Any, DataSettings, str], PreparedData]
"""Prepares one data set with these settings, for what messages call it."""

_WEIGHT = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)
_NUMBER_COLUMN = "__number__"


def parse_source(text: str) -> tuple[str, float | None]:
    """A source and its weight from `SOURCE:WEIGHT`; without a number behind the last colon there is no weight.

    Worked example: `a.jsonl:0.7` is ("a.jsonl", 0.7), `C:\\\\x.jsonl` and `owner/name` have none.  A file that has the
    whole text as its name is that file.
    """
    match = _WEIGHT.fullmatch(text)
    if match is None or Path(text).expanduser().exists():
        return text, None
    return match[1], float(match[2])


def is_mixture(spec: object) -> bool:
    """Whether this is a list of pairs of a source and its weight (or of `Source`s), and no list of rows."""
    return (
        isinstance(spec, Sequence)
        and not isinstance(spec, str)
        and len(spec) > 0
        and all(isinstance(entry, Source) or (isinstance(entry, tuple) and len(entry) == 2) for entry in spec)
    )


def read_parts(
    pairs: Sequence[tuple[Any, Any]],
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    name: str = "train",
    data_cache: str | None = None,
) -> list[Source]:
    """Read the sources of a mixture; for the arguments see `sources.read`.

    Files of one name in different folders are known by their paths, so that places of rows say which is meant.

    Raises:
        ConfigurationError: a weight that is none.
        DataError: what is wrong with any of the sources, all in one error.
    """
    _check_weights([weight for _, weight in pairs], name)
    names = [Path(source).name for source, _ in pairs if isinstance(source, (str, os.PathLike))]
    long_names = len(set(names)) < len(names)
    parts: list[Source] = []
    errors: list[SartorError] = []
    for number, (source, weight) in enumerate(pairs, 1):
        try:
            found = sources.read(
                source,
                split=split,
                config=config,
                revision=revision,
                name=name,
                long_names=long_names,
                data_cache=data_cache,
            )
        except (DataError, HubError) as error:
            errors.append(error)
        else:
            parts.append(replace(found, weight=weight, label=found.label or f"source {number}"))
    _raise_all(errors)
    return parts


def _raise_all(errors: Sequence[SartorError]) -> None:
    """Raise one error that tells all of them; do nothing where there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors and all(isinstance(error, ConfigurationError) for error in errors):
        raise ConfigurationError([str(error) for error in errors])
    if errors:
        raise DataError("\n".join(str(error) for error in errors))


def _check_weights(weights: Sequence[Any], name: str) -> None:
    """See that all sources of a mixture have a weight, or none.

    Raises:
        ConfigurationError: what is wrong with them.
    """
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise ConfigurationError(f"{name} data: some sources have a weight and some have none: give each one, or none.")
    for weight in given:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight <= 0:
            raise ConfigurationError(f"{name} data: {weight!r} is no weight: it must be a number above 0.")


def prepare_mixture(parts: Sequence[Source], settings: DataSettings, name: str, prepare: Prepare) -> PreparedData:
    """Prepare each source by its own rules, and mix the examples; packing and shuffling come after that.

    Args:
        settings: `seed` draws, `mix_until` says when it ends.
        name: what the rows are for; messages use it.
        prepare: prepares one source.

    Raises:
        DataError: rows of any source that cannot be used, all in one error.
        ConfigurationError: bad weights, or options that do not fit a source.
    """
    _check_weights([part.weight for part in parts], name)
    # What joins or reorders examples comes after mixing; what cuts them comes with the packing where there is one.
    inner = replace(settings, packing=False, shuffle_dataset=False)
    if settings.packing:
        inner = replace(inner, max_length=None)
    prepared = _prepared(parts, inner, name, prepare)
    is_arranged = settings.packing or settings.shuffle_dataset
    mixed, taken = _mixed(parts, prepared, settings, with_where=is_arranged)
    notes = _notes(parts, prepared, taken, settings)
    summary = _joined(name, [one.summary for one in prepared], notes)

    def counted() -> DataSummary:
        read = [one.summary if one.counted is None else one.counted() for one in prepared]
        told = tuple(f"{part.label}: {note}" for part, one in zip(parts, read, strict=True) for note in one.notes)
        return replace(
            _joined(name, read, (*told, *notes)),
            longest_tokens=max(one.longest_tokens for one in read),
            source_rows=_added(one.source_rows for one in read),
            **_sums(read, "num_examples", "num_tokens", "num_targets"),
        )

    if is_arranged:
        return _arranged(mixed, summary, counted, replace(settings, bad_rows="error"), name, prepare)
    if taken is None:
        return PreparedData(mixed, summary, counted=counted)
    places = Places.concatenate([one.places for one in prepared]).take(taken)
    return PreparedData(mixed, _counted(summary, mixed, places), places)


def _prepared(parts: Sequence[Source], settings: DataSettings, name: str, prepare: Prepare) -> list[PreparedData]:
    prepared: dict[int, PreparedData] = {}
    refused: dict[int, SartorError] = {}
    # A tokenizer without chat template is given one by the first conversations, and may end texts otherwise from then
    # on: so these come first, that the order of the sources does not matter.
    for number in sorted(range(len(parts)), key=lambda number: not _is_conversational(parts[number], settings)):
        part = parts[number]
        try:
            prepared[number] = prepare(part.dataset, settings, f"{name} ({part.label})")
        except (DataError, ConfigurationError) as error:
            refused[number] = error
    _raise_all([refused[number] for number in sorted(refused)])
    return [prepared[number] for number in range(len(parts))]


def _is_conversational(part: Source, settings: DataSettings) -> bool:
    try:
        return recognise(part.dataset, settings, name=part.label)[1].is_conversational
    except SartorError:  # told when it is prepared
        return False


def _mixed(
    parts: Sequence[Source], prepared: Sequence[PreparedData], settings: DataSettings, *, with_where: bool
) -> tuple[Any, NDArray[np.int64] | None]:
    """The mixed examples, and which they are, numbered through all sources; None for streams.

    Args:
        with_where: whether the examples bring their places along, as text, to where they are packed or shuffled.
    """
    import datasets

    sets = [one.dataset for one in prepared]
    is_stream = any(isinstance(dataset, datasets.IterableDataset) for dataset in sets)
    if is_stream:
        sets = [
            dataset if isinstance(dataset, datasets.IterableDataset) else dataset.to_iterable_dataset()
            for dataset in sets
        ]
    else:
        firsts = _firsts(prepared)
        sets = [_numbered(one, first, with_where=with_where) for one, first in zip(prepared, firsts, strict=False)]
    weights = [part.weight for part in parts]
    if None in weights:
        mixed = datasets.concatenate_datasets(sets)
    else:
        total = sum(weights)  # type: ignore[arg-type]
        mixed = datasets.interleave_datasets(
            sets,
            probabilities=[weight / total for weight in weights],  # type: ignore[operator]
            seed=settings.seed,
            stopping_strategy=settings.mix_until,
        )
    if is_stream:
        return mixed, None
    taken = mixed.select_columns([_NUMBER_COLUMN]).with_format("numpy")[:][_NUMBER_COLUMN]
    return mixed.remove_columns(_NUMBER_COLUMN), np.asarray(taken, np.int64)


def _firsts(prepared: Sequence[PreparedData]) -> NDArray[np.int64]:
    """The number of each source's first example, and of the one behind the last."""
    return np.cumsum([0, *(len(one.dataset) for one in prepared)], dtype=np.int64)


def _numbered(prepared: PreparedData, first: int, *, with_where: bool) -> datasets.Dataset:
    """A source's examples, each with its number, from `first` on, and perhaps with its place as text."""
    import pyarrow

    count = len(prepared.dataset)
    dataset: datasets.Dataset = prepared.dataset.add_column(
        _NUMBER_COLUMN, pyarrow.array(np.arange(first, first + count, dtype=np.int64))
    )
    if not with_where:
        return dataset
    parts = (np.arange(start, min(start + ROWS_PER_CHUNK, count)) for start in range(0, count, ROWS_PER_CHUNK))
    texts = [pyarrow.array(prepared.places.take(part).first_rows(), "string") for part in parts]
    return dataset.add_column(WHERE_COLUMN, pyarrow.chunked_array(texts, "string"))


def _arranged(
    mixed: Any,
    summary: DataSummary,
    counted: Callable[[], DataSummary],
    settings: DataSettings,
    name: str,
    prepare: Prepare,
) -> PreparedData:
    """The mixed examples packed and shuffled; the summary tells both."""
    result = prepare(mixed, settings, name)
    count_last = result.counted
    if count_last is None:
        return PreparedData(result.dataset, _of_both(summary, result.summary), result.places)
    return PreparedData(
        result.dataset,
        _of_both(summary, result.summary),
        counted=lambda: replace(_of_both(counted(), count_last()), source_rows=counted().source_rows),
    )


def _of_both(first: DataSummary, last: DataSummary) -> DataSummary:
    """What sources lost before they were mixed, and what was made of them then."""
    made = {field: getattr(last, field) for field in (*MADE, "source_rows")}
    return replace(first, **made, **_sums([first, last], *LOSSES))


def _joined(name: str, summaries: Sequence[DataSummary], notes: tuple[str, ...]) -> DataSummary:
    """Counts of all sources together, before mixing."""
    formats = {summary.format for summary in summaries}
    kind = formats.pop() if len(formats) == 1 else RowFormat.SEVERAL
    skipped = _added(summary.skipped_kinds for summary in summaries)
    none = DataSummary(name, kind, 0, 0, 0, 0, 0, notes=notes, skipped_kinds=skipped)
    return replace(none, **_sums(summaries, "num_rows", "num_skipped_rows", *LOSSES))


def _sums(summaries: Sequence[DataSummary], *names: str) -> dict[str, Any]:
    """The sums of these fields."""
    return {name: sum(getattr(summary, name) for summary in summaries) for name in names}


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    added: Counter[str] = Counter()
    for each in counts:
        added.update(each)
    return dict(added)


def _counted(summary: DataSummary, mixed: datasets.Dataset, places: Places) -> DataSummary:
    """The summary with counts of the examples that the mixture has."""
    written = Written()
    columns = [column for column in mixed.column_names if column in ("input_ids", "labels", "seq_lengths")]
    for table in mixed.select_columns(columns).with_format("arrow").iter(10_000):
        written.count(TokenRows.from_table(table))
    return replace(summary, **written.counts(), source_rows=places.counts())


def _notes(
    parts: Sequence[Source],
    prepared: Sequence[PreparedData],
    taken: NDArray[np.int64] | None,
    settings: DataSettings,
) -> tuple[str, ...]:
    """What each source gave, and what it has to say itself."""
    notes: list[str] = []
    firsts = None if taken is None else _firsts(prepared)
    for number, (part, one) in enumerate(zip(parts, prepared, strict=True)):
        weight = "" if part.weight is None else f" (weight {part.weight:g})"
        said = f"{part.label}{weight}: {one.summary.format}"
        if taken is not None and firsts is not None and len(taken):
            own = taken[(taken >= firsts[number]) & (taken < firsts[number + 1])]
            total, num_taken, num_used = len(taken), len(own), len(np.unique(own))
            num_left = len(one.dataset) - num_used
            said += f"; {num_taken:,} examples, {num_taken / total:.0%} of all"
            said += f", {num_taken - num_used:,} of them repeated" if num_taken > num_used else ""
            said += f"; {num_left:,} of its {len(one.dataset):,} are not used" if num_left else ""
        notes.append(said + ".")
        notes += [f"{part.label}: {note}" for note in (*part.notes, *one.summary.notes)]
    if any(part.weight is not None for part in parts):
        notes.append(f"mix_until={settings.mix_until}: {_UNTIL[settings.mix_until]}")
    return tuple(notes)


_UNTIL = {
    "first_exhausted": "the mixture ends when the first source has no more rows; no row comes twice.",
    "all_exhausted": "the mixture ends when every row has come; sources that run out before begin again.",
    "all_exhausted_without_replacement": "every row comes once; where a source has run out the others go on.",
}
