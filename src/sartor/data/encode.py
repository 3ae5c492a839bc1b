"""Prepares a data set for training: reads its columns, checks every row, tokenizes, cuts, packs and counts.

What comes in: a data set and a tokenizer.  What goes out: `PreparedData`, a data set with `input_ids`, `labels` and,
when packed, `seq_lengths`, and the summary of what happened.  What it keeps true: rows keep their order (but for
`shuffle_dataset` and packing); whatever is cut or dropped is counted; any row that cannot be used stops it, with all
such rows in one error.

Nothing is cached on disk and nothing is pickled.  Packing is given as a function, so that this room needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.data.detection import recognise
from sartor.data.formats import Reading
from sartor.data.places import Places
from sartor.data.problems import ProblemLog
from sartor.data.table import TokenRows
from sartor.data.tables import WHERE_COLUMN
from sartor.data.template import adopt_chatml
from sartor.data.tokenizing import run
from sartor.data.tokens import Encoder
from sartor.data.usable import encoding_usable
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, DataSummary, Packing, PreparedData, RowFormat

if TYPE_CHECKING:
    import datasets

FormattingFunction = Callable[[dict[str, Any]], str]
Packer = Callable[[Any, int, str], Packing]
"""Takes lengths, the block's length and the strategy: `sartor.batching.packing.pack`."""

ROWS_PER_BATCH = 1000
"""Rows that are in memory as Python objects at a time, and that the tokenizer gets in one call."""


def prepare(
    dataset: datasets.Dataset | datasets.IterableDataset,
    tokenizer: Any,
    settings: DataSettings,
    *,
    name: str = "train",
    formatting_func: FormattingFunction | None = None,
    pack: Packer | None = None,
    end_tokens: Sequence[str] = (),
) -> PreparedData:
    """Make a data set ready for training.

    Targets are trl's: of prompt + completion the completion only (unless `completion_only_loss=False`), of everything
    else all tokens, with `assistant_only_loss` what the template marks, or what is proven of each answer where it has
    no marks (see `targets`).  Rows that are not conversations get the
    end-of-text token. Rows longer than `max_length` are cut, and dropped where no target is left; with `packing` they
    are packed instead.

    A tokenizer without chat template is given the built-in one where conversations need it (see
    `template.adopt_chatml`). A stream is prepared lazily: its rows are checked when they are read, and its counts are
    0.

    Args:
        name: what the rows are for; messages use it.
        formatting_func: makes a text of a row; then that is what is trained.
        pack: the packing function; needed where `settings.packing`.
        end_tokens: texts of tokens at which generation stops, besides the tokenizer's end-of-text token; only for
            answers that the template does not mark.

    Raises:
        DataError: rows that cannot be used, all of them in one error; or nothing is left to train.
        ConfigurationError: options that do not fit the data set or the tokenizer.
    """
    import datasets

    _check_settings(settings, pack)
    is_stream = isinstance(dataset, datasets.IterableDataset)
    if not is_stream and dataset.format["type"] == "custom":
        raise DataError(
            f"{name} data: a data set with `with_transform()` cannot be prepared: the transform would run once and its "
            "result be kept. Apply it with `map()` first, or set dataset_kwargs={'skip_prepare_dataset': True} and "
            "have it return input_ids and labels."
        )
    dataset = dataset.with_format(None)
    columns, reading = recognise(dataset, settings, name=name, formatting_func=formatting_func)
    if settings.packing and "seq_lengths" in columns and reading.format is RowFormat.TOKENIZED:
        raise ConfigurationError(f"The {name} data is packed already (it has seq_lengths). Set packing=False.")
    reading = _with_template(reading, tokenizer)
    encoder = Encoder(tokenizer, reading, settings, end_tokens)
    if is_stream:
        from sartor.data.stream import prepare_stream

        return prepare_stream(dataset, columns, encoder, reading, settings, name, pack)
    return _prepare_rows(dataset, encoder, reading, settings, name, pack)


def _check_settings(settings: DataSettings, pack: Packer | None) -> None:
    if settings.truncation_mode not in ("keep_start", "keep_end"):
        mode = settings.truncation_mode
        raise ConfigurationError(f"truncation_mode={mode!r} is not known. Use keep_start or keep_end.")
    if settings.max_length is not None and settings.max_length < 1:
        raise ConfigurationError(f"max_length={settings.max_length} leaves no token. Use at least 1, or None.")
    if settings.packing:
        if settings.max_length is None:
            raise ConfigurationError("packing=True needs max_length, the length of a block; it is None.")
        if pack is None:
            raise TypeError("prepare() needs pack= where settings.packing is set")


def _with_template(reading: Reading, tokenizer: Any) -> Reading:
    """See that there is a chat template where rows need one."""
    if not reading.is_conversational:
        return reading
    note = adopt_chatml(tokenizer)
    return reading if note is None else replace(reading, notes=(note, *reading.notes))


def _prepare_rows(
    dataset: datasets.Dataset,
    encoder: Encoder,
    reading: Reading,
    settings: DataSettings,
    name: str,
    pack: Packer | None,
) -> PreparedData:
    skips = settings.bad_rows == "skip"
    problems, num_rows = ProblemLog(), 0
    parts: list[TokenRows] = []
    kept_places: list[Places] = []
    for rows, where in _batches(dataset, reading, name):
        num_rows += len(rows)
        part, kept = run(encoding_usable(encoder, rows, where, problems, skip=skips), encoder.tokenize)
        parts.append(part)
        kept_places.append(Places.of_texts(kept))
    encoded = TokenRows.concatenate(parts)
    if not skips or not len(encoded):
        problems.raise_if_any(f"{name} data", num_rows)
    if not encoded.num_targets:
        raise DataError(f"{name} data: no token of any of the {len(encoded):,} rows is trained: all labels are -100.")
    places = Places.concatenate(kept_places)
    summary = DataSummary(name, reading.format, num_rows, 0, 0, 0, 0, notes=notes_of(reading, encoder, settings))
    result, summary, places = cut(encoded, settings, with_problems(summary, problems), places)
    if not result.num_targets:
        raise DataError(
            f"{name} data: with max_length={settings.max_length} and truncation_mode={settings.truncation_mode} "
            f"nothing that is trained is left of any of the {len(encoded):,} rows; the longest has "
            f"{int(encoded.lengths.max()):,} tokens. Raise max_length, or try the other truncation_mode."
        )
    result, places = arrange(result, settings, pack, places)
    summary = replace(_counted(summary, result), source_rows=Places.concatenate(kept_places).counts())
    return PreparedData(result.to_dataset(), summary, places)


def with_problems(summary: DataSummary, problems: ProblemLog) -> DataSummary:
    """The summary with the rows that are left out because they cannot be used."""
    return replace(
        summary,
        num_skipped_rows=len(problems.bad_places),
        skipped_kinds=problems.counts,
        notes=summary.notes + tuple(f"skipped: {told}" for told in problems.told()),
    )


def _batches(
    dataset: datasets.Dataset, reading: Reading, name: str
) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
    """Rows and their places, in order, without the columns that nothing uses."""
    used = dataset.remove_columns(list(reading.unused_columns))
    first = 0
    for batch in used.iter(ROWS_PER_BATCH):
        rows = rows_of(batch)
        yield rows, places_of(rows, first, name)
        first += len(rows)


def rows_of(batch: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The rows of a batch of columns."""
    names = list(batch)
    return [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def places_of(rows: Sequence[Mapping[str, Any]], first: int, name: str) -> list[str]:
    """Where rows stand, for messages: file and line where known, else the number in the data set, from 0."""
    return [row.get(WHERE_COLUMN) or f"{name} data, row {number}" for number, row in enumerate(rows, first)]


def cut(
    rows: TokenRows, settings: DataSettings, summary: DataSummary, places: Places
) -> tuple[TokenRows, DataSummary, Places]:
    """Rows cut to `max_length`, without those that keep no target; the summary with what that cost; the rows' places.

    Rows of weight 0 never had a target, and are left out whatever the options; rows that came tokenized without any
    are treated as trl does.  With packing nothing is dropped, as in trl: `bfd` cuts rows to the block's length from
    the end, the other strategies cut nothing.
    """
    num_left_out = 0
    if summary.format is not RowFormat.TOKENIZED and not (has_target := rows.targets_per_row > 0).all():
        num_left_out = int(np.count_nonzero(~has_target))
        rows, places = rows.take(np.flatnonzero(has_target)), places.take(np.flatnonzero(has_target))
    if settings.max_length is None or (settings.packing and settings.packing_strategy != "bfd"):
        return rows, replace(summary, num_dropped_rows=num_left_out), places
    mode = "keep_start" if settings.packing else settings.truncation_mode
    is_cut = rows.lengths > settings.max_length
    short = rows.truncate(settings.max_length, mode) if is_cut.any() else rows
    keeps_targets = short.targets_per_row > 0
    summary = replace(
        summary,
        num_truncated_rows=int(np.count_nonzero(is_cut)),
        num_truncated_tokens=rows.num_tokens - short.num_tokens,
        num_truncated_targets=rows.num_targets - short.num_targets,
        num_dropped_rows=num_left_out,
    )
    if settings.packing or keeps_targets.all():
        return short, summary, places
    kept = np.flatnonzero(keeps_targets)
    num_dropped = num_left_out + len(short) - len(kept)
    return short.take(kept), replace(summary, num_dropped_rows=num_dropped), places.take(kept)


def arrange(rows: TokenRows, settings: DataSettings, pack: Packer | None, places: Places) -> tuple[TokenRows, Places]:
    """Rows and their places, shuffled and packed as asked.

    `shuffle_dataset` shuffles before and after packing, as in trl.
    """
    if settings.packing:
        assert pack is not None
        assert settings.max_length is not None
        if settings.shuffle_dataset:
            rows, places = _shuffled(rows, places, settings.seed)
        packing = pack(rows.lengths, settings.max_length, settings.packing_strategy)
        rows, places = rows.packed(packing), places.packed(packing)
    return _shuffled(rows, places, settings.seed) if settings.shuffle_dataset else (rows, places)


def _shuffled(rows: TokenRows, places: Places, seed: int) -> tuple[TokenRows, Places]:
    """The order that `datasets.Dataset.shuffle(seed=seed)` gives."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.take(order), places.take(order)


def _counted(summary: DataSummary, result: TokenRows) -> DataSummary:
    return replace(
        summary,
        num_examples=len(result),
        num_tokens=result.num_tokens,
        num_targets=result.num_targets,
        longest_tokens=int(result.lengths.max()),
    )


def notes_of(reading: Reading, encoder: Encoder, settings: DataSettings) -> tuple[str, ...]:
    """What is worth saying aloud."""
    notes = [*reading.notes, *encoder.notes()]
    if settings.num_proc is not None and settings.num_proc > 1:
        notes.append("dataset_num_proc starts no processes: the tokenizer's own threads use the cores.")
    return tuple(notes)
