"""Rows with things planted in them, and an inspection of them."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase
from typing import Any

from datasets import Dataset

from sartor.batching.packing import pack
from sartor.data.inspection.examine import Examination, Given
from sartor.data.inspection.record import Finding, Inspection
from sartor.records import DataSettings


def sentence(number: int, length: int = 24) -> str:
    """A text of so many invented words, that shares next to no run of characters with that of another number."""
    random = Random(number)
    return " ".join("".join(random.choices(ascii_lowercase, k=random.randint(3, 9))) for _ in range(length))


def conversation(number: int, answer: str | None = None, question: str | None = None) -> dict[str, Any]:
    return {
        "messages": [
            {
                "role": "user",
                "content": f"Tell me about {number}: {sentence(number, 8)}" if question is None else question,
            },
            {"role": "assistant", "content": sentence(number + 1000) if answer is None else answer},
        ]
    }


def inspect(
    rows: list[dict[str, Any]] | Any, tokenizer: Any, *, train: Examination | None = None, **options: Any
) -> Inspection:
    context, num_samples = options.pop("context", None), options.pop("num_samples", 3)
    given = Given(
        tokenizer, DataSettings(**options), "rows.jsonl", "tiny", pack=pack, context=context, num_samples=num_samples
    )
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return Examination(dataset, given, "train" if train is None else "eval").run([] if train is None else [train])


def found(inspection: Inspection, kind: str) -> Finding:
    (finding,) = [finding for finding in inspection.findings if finding.kind == kind]
    return finding


def places(finding: Finding) -> list[int]:
    """Numbers of the rows that a finding names."""
    return [int(sight.where.rpartition(" ")[2]) for sight in finding.first]
