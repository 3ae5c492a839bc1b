"""Prepares a data set for training: reads its columns, checks every row, tokenizes, cuts, packs and counts.

What comes in: a data set and a tokenizer.  What goes out: `PreparedData`, a data set with `input_ids`, `labels` and,
when packed, `seq_lengths`, and the summary of what happened.  What it keeps true: rows keep their order (but for
`shuffle_dataset` and packing); whatever is cut or dropped is counted; any row that cannot be used stops it, with all
such rows in one error.

Packing is given as a function, so that this room needs no other.  What follows the decisions made here is in
`assemble`, for rows of known number, and in `stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.assemble import prepare_rows
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.limits import check_blocks
from sartor.data.encoding.request import Packer, Request, silently
from sartor.data.rows.detection import FormattingFunction, recognise
from sartor.data.rows.formats import Reading
from sartor.data.templates.rendering import adopt_chatml
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, PreparedData, RowFormat

if TYPE_CHECKING:
    import datasets


def prepare(
    dataset: datasets.Dataset | datasets.IterableDataset,
    tokenizer: Any,
    settings: DataSettings,
    *,
    name: str = "train",
    formatting_func: FormattingFunction | None = None,
    pack: Packer | None = None,
    end_tokens: Sequence[str] = (),
    say: Callable[[str], None] = silently,
) -> PreparedData:
    """Make a data set ready for training.

    Targets are trl's: of prompt + completion the completion only (unless `completion_only_loss=False`), of everything
    else all tokens, with `assistant_only_loss` what the template marks, or what is proven of each answer where it has
    no marks (see `targets`).  Rows that are not conversations get the end-of-text token.  Rows longer than `max_length`
    are cut, and dropped where no target is left; with `packing` they are packed instead.

    A tokenizer without chat template is given the built-in one where conversations need it (see
    `rendering.adopt_chatml`). A stream is prepared lazily: its rows are checked when they are read, and its counts are
    0.

    Args:
        name: what the rows are for; messages use it.
        formatting_func: makes a text of a row; then that is what is trained.
        pack: the packing function; needed where `settings.packing`.
        end_tokens: texts of tokens at which generation stops, besides the tokenizer's end-of-text token; only for
            answers that the template does not mark.
        say: tells the user what happens to the cache (see `cache`).

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
    columns, reading = reading_of(dataset, tokenizer, settings, name=name, formatting_func=formatting_func)
    if settings.packing and "seq_lengths" in columns and reading.format is RowFormat.TOKENIZED:
        raise ConfigurationError(f"The {name} data is packed already (it has seq_lengths). Set packing=False.")
    check_blocks(settings)
    if reading.format is not RowFormat.TOKENIZED and _fits(tokenizer, settings.num_embeddings):
        settings = replace(settings, num_embeddings=None)  # one cache for all models with this tokenizer
    request = Request(dataset, tokenizer, reading, settings, name, tuple(end_tokens), pack, say)
    encoder = Encoder(tokenizer, reading, settings, end_tokens)
    if is_stream:
        from sartor.data.encoding.stream import prepare_stream

        return prepare_stream(request, columns, encoder)
    return prepare_rows(request, encoder)


def _fits(tokenizer: Any, num_embeddings: int | None) -> bool:
    """Whether every id that the tokenizer can give has a row in the embedding."""
    return num_embeddings is not None and max(tokenizer.get_vocab().values(), default=0) < num_embeddings


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


def reading_of(
    dataset: datasets.Dataset | datasets.IterableDataset,
    tokenizer: Any,
    settings: DataSettings,
    *,
    name: str,
    formatting_func: FormattingFunction | None = None,
) -> tuple[list[str], Reading]:
    """The columns of a data set, and how its rows are read, by a tokenizer with a chat template where they need one.

    Raises:
        DataError, ConfigurationError: see `recognise` and `adopt_chatml`.
    """
    columns, reading = recognise(dataset, settings, name=name, formatting_func=formatting_func)
    note = adopt_chatml(tokenizer) if reading.is_conversational else None
    return columns, reading if note is None else replace(reading, notes=(note, *reading.notes))
