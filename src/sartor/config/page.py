"""Writes docs/options.md: `python -m sartor.config.page > docs/options.md`."""

from dataclasses import fields
from typing import Any

from sartor.config.own_options import OWN_FIELDS
from sartor.config.sft_config import DEFAULTS, SFTConfig
from sartor.config.table import OPTIONS, Status
from sartor.config.texts import GROUPS

_HEAD = """# Options

<!-- Written by `python -m sartor.config.page`; a test holds it up to date. -->

`SFTConfig` has every field of trl's `SFTConfig`, and so every field of transformers' `TrainingArguments`, and {own} of
its own. On the command line they are flags of the same names, with dashes or underscores: `--learning-rate 1e-4`. Every
field is honoured, or refused with the reason and what to use instead, or named in one line as having no effect. None
is silently ignored. [differences](differences.md) says what differs from trl on purpose.
"""


def page() -> str:
    """The whole page, in Markdown."""
    helps = {entry.name: str(entry.metadata.get("help", "")) for entry in fields(SFTConfig)}
    lines = [_HEAD.format(own=len(OWN_FIELDS)), "## Honoured"]
    for group, options in GROUPS.items():
        lines += [
            "",
            f"### {group[0].upper()}{group[1:]}",
            "",
            "| option | default | meaning | remark |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{name}` | {_default(name)} | {_cell(text or helps[name])} | {_cell(OPTIONS[name].remark)} |"
            for name, text in options.items()
        ]
    lines += ["", "## Refused", "", "| option | why, and what to use |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(OPTIONS[name].remark)} |" for name in _named(Status.REFUSED)]
    lines += ["", "## No effect", "", "| option | default | why |", "|---|---|---|"]
    lines += [f"| `{name}` | {_default(name)} | {_cell(OPTIONS[name].remark)} |" for name in _named(Status.NO_EFFECT)]
    return "\n".join(lines) + "\n"


def _named(status: Status) -> list[str]:
    return sorted(name for name, option in OPTIONS.items() if option.status is status)


def _default(name: str) -> str:
    value: Any = DEFAULTS[name]
    return "" if value in ("", []) else f"`{getattr(value, 'value', value)!r}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
