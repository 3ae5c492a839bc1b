"""An inspection as one HTML page that needs nothing else: no network, no other file.

What it keeps true: everything that comes from rows is escaped, and a content security policy allows no script and no
style but the page's own, by their hashes, so that even a mistake in escaping could run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from sartor.data.inspection.prepared import LengthBar, describe, length_bars, spread, visible
from sartor.data.inspection.record import Inspection, Lengths, Sample, Token, rows
from sartor.data.inspection.terminal import counts_of

BARS = 48


def page(inspections: Sequence[Inspection]) -> str:
    """The page of one or several data sets, the training rows first."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style, script, template = (_file(f"page.{kind}") for kind in ("css", "js", "html.jinja"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        data=[_data_set(inspection, f"data-{number}") for number, inspection in enumerate(inspections)],
        title=next((visible(one.source) for one in inspections if one.name == "train"), visible(inspections[0].source)),
        options=list(inspections[0].options.items()),
        style=Markup(style),  # our own files: no row is in them
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _data_set(inspection: Inspection, anchor: str) -> dict[str, Any]:
    """What the template shows of one data set; `anchor` names it on the page."""
    lengths, summary = inspection.lengths, inspection.summary
    anchors = {sample.where: f"{anchor}-{number}" for number, sample in enumerate(inspection.samples)}
    num_tokens, num_targets = int(lengths.tokens.sum()), int(lengths.targets.sum())
    return {
        "name": visible(inspection.name),
        "heading": _heading(inspection),
        "anchor": anchor,
        "is_mixture": not inspection.searched,
        "source": visible(inspection.source),
        "model": visible(inspection.model),
        "format": summary.format,
        "num_rows": f"{summary.num_rows:,}",
        "num_tokens": f"{num_tokens:,}",
        "num_targets": f"{num_targets:,}",
        "share": f"{num_targets / max(1, num_tokens):.0%}",
        "median": f"{lengths.quantiles(lengths.tokens).get('p50', 0):,}",
        "lines": [visible(line.strip()) for line in describe(summary).splitlines()],
        "counts": counts_of(inspection.findings).partition(": ")[2],
        "findings": [
            {
                "severity": finding.severity.value,
                "count": rows(finding.count) + ":" if finding.count else "",
                "message": visible(finding.message),
                "advice": finding.advice,
                "others": rows(finding.count - len(finding.first), "other", "others")
                if finding.count > len(finding.first) > 0
                else "",
                "sights": [
                    {"where": sight.where, "excerpt": visible(sight.excerpt), "anchor": anchors.get(sight.where)}
                    for sight in finding.first
                ],
            }
            for finding in inspection.findings
        ],
        "searched": inspection.searched,
        "kinds": list(dict.fromkeys(kind for sample in inspection.samples for kind in sample.findings)),
        "samples": [_sample(sample, anchors[sample.where]) for sample in inspection.samples],
        **_lengths(lengths),
    }


def _heading(inspection: Inspection) -> str:
    """What a data set is, where there are several."""
    if not inspection.searched:
        return f"{visible(inspection.name)}: these sources mixed"
    if inspection.source in inspection.name:
        return visible(inspection.name)
    return visible(f"{inspection.name}: {inspection.source}")


def _lengths(lengths: Lengths) -> dict[str, Any]:
    """Histogram and table of cuts."""
    if not len(lengths.tokens):
        return {"bars": [], "longest": "0"}
    limit = lengths.max_length
    found = length_bars(lengths.tokens, BARS)
    most = max(bar.num_rows for bar in found)
    low, high, step = found[0].start, int(lengths.tokens.max()), (found[0].end or found[0].start) - found[0].start + 1
    bars = [
        {
            "height": _height(bar.num_rows / most),
            "label": f"{_range(bar)}: {rows(bar.num_rows)}",
            "is_cut": limit is not None and bar.start > limit,
        }
        for bar in found
    ]
    end = low + step * len(found)
    said = ""
    if limit is not None:
        longer = int(np.count_nonzero(lengths.tokens > limit))
        said = (
            f"max_length={limit:,}: {rows(longer)} of {len(lengths.tokens):,} {'is' if longer == 1 else 'are'} longer."
        )
    return {
        "bars": bars,
        "limit": None if limit is None or not low <= limit < end else round(10 * (limit + 1 - low) / step, 2),
        "limit_said": said,
        "shortest": f"{low:,}",
        "middle": f"{(low + end - 1) // 2:,}",
        "longest": f"{high:,}",
        "last": f"{found[-1].start:,} and more" if found[-1].end is None else f"{high:,}",
        "quantiles": spread(lengths.tokens),
        "cuts": [
            {
                "max_length": f"{cut.max_length:,}",
                "is_asked": cut.max_length == limit,
                "num_rows": f"{cut.num_rows:,}",
                "num_tokens": f"{cut.num_tokens:,}",
                "num_targets": lengths.targets_lost(cut),
                "num_emptied": f"{cut.num_emptied:,}",
            }
            for cut in lengths.cuts
        ],
        "suggestion": lengths.suggestion,
    }


def _range(bar: LengthBar) -> str:
    """`10 to 19 tokens`."""
    if bar.end is None:
        return f"{bar.start:,} tokens and more"
    return f"{bar.start:,} tokens" if bar.end == bar.start else f"{bar.start:,} to {bar.end:,} tokens"


def _height(share: float) -> float:
    """Of a bar, in hundredths of the highest; what is there is never invisible."""
    return max(1.0, round(100 * share, 2)) if share > 0 else 0.0


def _sample(sample: Sample, anchor: str) -> Mapping[str, Any]:
    more = sample.num_tokens - len(sample.tokens)
    return {
        "anchor": anchor,
        "where": visible(sample.where),
        "said": f"{rows(sample.num_tokens, 'token', 'tokens')}, {sample.num_targets:,} trained",
        "kinds": sample.findings,
        "tokens": [_token(token) for token in sample.tokens],
        "more": rows(more, "more token is", "more tokens are") if more else "",
    }


def _token(token: Token) -> Mapping[str, Any]:
    """A trained token is a `b`, another one an `i`: the short names keep the page small."""
    said = f"id {token.id}, {'trained' if token.is_target and not token.is_cut else 'not trained'}"
    classes = " ".join(name for name, is_so in (("s", token.is_special), ("x", token.is_cut)) if is_so)
    return {
        "tag": "b" if token.is_target and not token.is_cut else "i",
        "classes": classes,
        "title": said + (", special" if token.is_special else "") + (", cut off" if token.is_cut else ""),
        "parts": [part for part in re.split("(\n)", visible(token.text)) if part] or [""],
    }
