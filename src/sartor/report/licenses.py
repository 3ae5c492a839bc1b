"""Licence identifiers that the Hub takes in a card's metadata."""

from __future__ import annotations

import re

_IDENTIFIERS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib
"""
IDENTIFIERS = frozenset(_IDENTIFIERS.split())


def license_metadata(name: str | None) -> tuple[str | None, str | None]:
    """The metadata `license` and, for a licence that the Hub has no identifier for, `license_name`.

    Example: `Apache-2.0` gives ("apache-2.0", None), `My Licence 1` gives ("other", "my-licence-1"), None gives (None,
    None): a licence that is not known must not be claimed.
    """
    slug = re.sub(r"[^a-z0-9.+]+", "-", (name or "").lower()).strip("-")
    if not slug:
        return None, None
    return (slug, None) if slug in IDENTIFIERS else ("other", slug)
