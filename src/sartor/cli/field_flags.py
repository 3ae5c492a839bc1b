"""The flags of `sartor train` that are fields of `SFTConfig`.

They are read from `field_flags.json`, which `python -m sartor.cli.generate` writes and a test holds up to date: taking
them from the class would load transformers, which takes seconds.
"""

import json
from importlib import resources

from sartor.cli.flags import Flag

_TUPLES = ("choices", "aliases")


def _read() -> tuple[Flag, ...]:
    rows = json.loads(resources.files("sartor.cli").joinpath("field_flags.json").read_text(encoding="utf-8"))
    return tuple(Flag(**row | {name: tuple(row[name]) for name in _TUPLES if name in row}) for row in rows)


FIELD_FLAGS = _read()
