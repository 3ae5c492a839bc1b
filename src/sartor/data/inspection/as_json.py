"""An inspection as JSON, for scripts.  docs/inspect.md describes the keys; `SCHEMA` counts their changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sartor.data.inspection.record import SCHEMA, Inspection


def to_json(inspections: Sequence[Inspection]) -> str:
    """All data sets in one object."""
    whole = {
        "schema": SCHEMA,
        "model": inspections[0].model,
        "options": dict(inspections[0].options),
        "has_errors": any(inspection.has_errors for inspection in inspections),
        "data": [_data_set(inspection) for inspection in inspections],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2)


def _data_set(inspection: Inspection) -> dict[str, Any]:
    lengths = inspection.lengths
    summary = asdict(inspection.summary)
    return {
        "name": inspection.name,
        "source": inspection.source,
        "format": str(inspection.summary.format),
        "summary": {key: value for key, value in summary.items() if key not in ("name", "format")},
        "lengths": {
            "tokens": dict(lengths.quantiles(lengths.tokens)),
            "targets": dict(lengths.quantiles(lengths.targets)),
            "num_tokens": int(lengths.tokens.sum()),
            "num_targets": int(lengths.targets.sum()),
            "cuts": [asdict(cut) for cut in lengths.cuts],
            "suggestion": None if lengths.suggestion is None else asdict(lengths.suggestion),
        },
        "findings": [
            {key: value for key, value in asdict(finding).items() if key != "data"} for finding in inspection.findings
        ],
        "duplicates_searched": inspection.searched,
        "samples": [
            {
                "where": sample.where,
                "num_tokens": sample.num_tokens,
                "num_targets": sample.num_targets,
                "findings": list(sample.findings),
                "ids": [token.id for token in sample.tokens],
                "is_target": [int(token.is_target) for token in sample.tokens],
                "texts": [token.text for token in sample.tokens],
            }
            for sample in inspection.samples
        ],
    }
