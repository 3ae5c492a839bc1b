"""Rows to examples: what `train_dataset`, `eval_dataset` and `predict`'s data set become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sartor.batching.packing import pack
from sartor.data import audit, encode, inspect, sources
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, DataSummary
from sartor.trainer import voice


class Preparation:
    """How this trainer prepares data sets; keeps a summary of each."""

    def __init__(
        self,
        tokenizer: Any,
        train: DataSettings,
        evaluation: DataSettings,
        *,
        formatting_func: Callable[[Any], str] | None,
        skips: bool,
        has_collator: bool,
        end_tokens: Sequence[str] = (),
    ) -> None:
        """`end_tokens`: texts at which the model's generation stops, besides the tokenizer's end-of-text token."""
        self._tokenizer = tokenizer
        self._settings = {"train": train}
        self._evaluation = evaluation
        self._formatting_func = formatting_func
        self._skips = skips
        self._has_collator = has_collator
        self._end_tokens = tuple(end_tokens)
        self.summaries: dict[str, DataSummary] = {}

    def prepare(self, dataset: Any, name: str) -> Any:
        """One data set, ready for training; what it holds, and what was cut or dropped, is said aloud."""
        dataset = sources.load(dataset, name=f"{name}_dataset")
        columns = set(dataset.column_names or ())
        if self._skips:
            masks = sorted(columns & {"completion_mask", "assistant_masks"})
            if masks and "labels" not in columns and not self._has_collator:
                raise DataError(
                    f"{name}_dataset has {', '.join(masks)} but no 'labels', and `skip_prepare_dataset=True` skips "
                    "building them, so everything would be trained. Add a 'labels' column (-100 for tokens that are "
                    "not trained), or drop `skip_prepare_dataset`."
                )
            return dataset
        settings = self._settings.get(name, self._evaluation)
        prepared = encode.prepare(
            dataset,
            self._tokenizer,
            settings,
            name=name,
            formatting_func=self._formatting_func,
            pack=pack,
            end_tokens=self._end_tokens,
            say=voice.say,
        )
        note = audit.collator_note(self._tokenizer, self._end_tokens) if self._has_collator else None
        prepared = (
            prepared
            if note is None
            else replace(prepared, summary=replace(prepared.summary, notes=(*prepared.summary.notes, note)))
        )
        self.summaries[name] = prepared.summary
        for line in inspect.describe(prepared.summary).splitlines():
            voice.say(line)
        return prepared.dataset

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
