"""Rows to examples: what `train_dataset`, `eval_dataset` and `predict`'s data set become."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sartor.batching.packing import pack
from sartor.data.encoding import encode, mixture
from sartor.data.encoding.stream import STREAM_NOTE
from sartor.data.encoding.tokenized import check_unprepared
from sartor.data.inspection.prepared import describe
from sartor.data.reading import sources
from sartor.data.targets import audit
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, DataSummary, PreparedData
from sartor.report.card import dataset_hub_id
from sartor.run import voice


class Preparation:
    """How a run prepares data sets; keeps a summary of each."""

    def __init__(
        self,
        tokenizer: Any,
        train: DataSettings,
        evaluation: DataSettings,
        *,
        skips: bool = False,
        formatting_func: Callable[[Any], str] | None = None,
        has_collator: bool = False,
        end_tokens: Sequence[str] = (),
    ) -> None:
        """`end_tokens`: texts at which the model's generation stops, besides the tokenizer's end-of-text token."""
        self.train: Any = None
        """The prepared data set that is trained on."""
        self.evaluation: Any = None
        """The one that is evaluated on, or several by name."""
        self._tokenizer = tokenizer
        self._settings = {"train": train}
        self._evaluation_settings = evaluation
        self._formatting_func = formatting_func
        self._skips = skips
        self._has_collator = has_collator
        self._end_tokens = tuple(end_tokens)
        self.summaries: dict[str, DataSummary] = {}
        self.places: dict[str, Any] = {}
        """By data set: file and line of each example's rows, where they are known."""
        self._digests: dict[str, tuple[weakref.ref[Any], str | None]] = {}
        self._streams: dict[str, tuple[PreparedData, Callable[[], DataSummary]]] = {}

    def limit(self, num_embeddings: int | None, num_positions: int | None) -> None:
        """From now on rows are held against what the model can look up; see `DataSettings`."""

        def limited(settings: DataSettings) -> DataSettings:
            return replace(settings, num_embeddings=num_embeddings, num_positions=num_positions)

        self._settings = {name: limited(settings) for name, settings in self._settings.items()}
        self._evaluation_settings = limited(self._evaluation_settings)

    def prepare(self, dataset: Any, name: str) -> Any:
        """One data set, ready for training; what it holds, and what was cut or dropped, is said aloud."""
        settings = self._settings.get(name, self._evaluation_settings)
        if mixture.is_mixture(dataset):
            if self._skips:
                raise DataError(
                    f"{name}_dataset has several sources, which are mixed once they are prepared, but "
                    "`skip_prepare_dataset=True` skips that. Mix them with datasets.interleave_datasets."
                )
            is_read = isinstance(dataset[0], sources.Source)
            parts = dataset if is_read else mixture.read_parts(dataset, name=name, data_cache=settings.data_cache)
            prepared = mixture.prepare_mixture(parts, settings, name, self._prepared)
        else:
            source = sources.read(dataset, name=name, data_cache=settings.data_cache)
            if self._skips:
                return self._unprepared(source.dataset, name)
            prepared = _with_notes(self._prepared(source.dataset, settings, name), source.notes)
        note = audit.collator_note(self._tokenizer, self._end_tokens) if self._has_collator else None
        prepared = _with_notes(prepared, () if note is None else (note,))
        self.summaries[name] = prepared.summary
        self.places[name] = prepared.places
        self._digests[name] = (weakref.ref(prepared.dataset), prepared.digest)
        self._streams.pop(name, None)
        if prepared.counted is not None:
            self._streams[name] = (prepared, prepared.counted)
        for line in describe(prepared.summary).splitlines():
            voice.say(line)
        return prepared.dataset

    def _prepared(self, dataset: Any, settings: DataSettings, name: str) -> PreparedData:
        return encode.prepare(
            dataset,
            self._tokenizer,
            settings,
            name=name,
            formatting_func=self._formatting_func,
            pack=pack,
            end_tokens=self._end_tokens,
            say=voice.say,
        )

    def _unprepared(self, dataset: Any, name: str) -> Any:
        """The data set as it is, provided that its labels are there."""
        columns = set(dataset.column_names or ())
        masks = sorted(columns & {"completion_mask", "assistant_masks"})
        if masks and "labels" not in columns and not self._has_collator:
            raise DataError(
                f"{name}_dataset has {', '.join(masks)} but no 'labels', and `skip_prepare_dataset=True` skips "
                "building them, so everything would be trained. Add a 'labels' column (-100 for tokens that are "
                "not trained), or drop `skip_prepare_dataset`."
            )
        if not self._has_collator:
            settings = replace(self._settings.get(name, self._evaluation_settings), max_length=None)
            check_unprepared(dataset, settings, name)
        return dataset

    def digest_of(self, dataset: Any) -> str | None:
        """Of a data set's content, where it was taken when this very object was prepared, and its rows are as then."""
        if getattr(dataset, "format", {}).get("type") == "custom":  # a transform of the user's makes other rows of them
            return None
        return next((digest for prepared, digest in self._digests.values() if prepared() is dataset), None)

    def count_streams(self) -> bool:
        """See what was read of streams by now, and say it; whether there is any."""
        for name, (prepared, counted) in self._streams.items():
            found = counted()
            # What was added to the notes when it was prepared stays.
            notes = [note for note in (*found.notes, *prepared.summary.notes) if not note.endswith(STREAM_NOTE)]
            self.summaries[name] = replace(found, notes=tuple(dict.fromkeys(notes)))
            for line in describe(self.summaries[name]).splitlines():
                voice.say(line)
        return bool(self._streams)

    def as_json(self) -> dict[str, Any]:
        """What was found, cut, dropped and left out of each data set, by name, for the run's folder.

        Holds file names, counts and notes; no rows but what notes cite of bad ones.
        """
        return {name: asdict(summary) for name, summary in self.summaries.items()}

    def prepare_evaluation(self, datasets: Any) -> Any:
        """One evaluation set, or a dictionary of several by name."""
        if datasets is None:
            return None
        if isinstance(datasets, Mapping):
            return {name: self.prepare(dataset, name) for name, dataset in datasets.items()}
        return self.prepare(datasets, "eval")


def _with_notes(prepared: PreparedData, notes: Sequence[str]) -> PreparedData:
    """The same, with more to say."""
    return replace(prepared, summary=replace(prepared.summary, notes=(*prepared.summary.notes, *notes)))


def hub_id(dataset: Any) -> str | None:
    """The Hub id of what was given as train_dataset; None where it has none, or several."""
    rows = dataset.dataset if isinstance(dataset, sources.Source) else dataset
    return dataset_hub_id(rows) if hasattr(rows, "info") else None


def skips_preparation(dataset_kwargs: Any) -> bool:
    """`dataset_kwargs={"skip_prepare_dataset": True}`; any other key is an error."""
    keywords = dict(dataset_kwargs or {})
    skips = bool(keywords.pop("skip_prepare_dataset", False))
    if keywords:
        raise ConfigurationError(
            f"dataset_kwargs has {', '.join(sorted(keywords))}: only skip_prepare_dataset is known. Options of the "
            "tokenizer belong to the tokenizer that you pass as processing_class."
        )
    return skips
