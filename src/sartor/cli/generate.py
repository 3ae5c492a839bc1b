"""Writes the flags of `sartor train` that are fields of `SFTConfig`: `python -m sartor.cli.generate >
src/sartor/cli/field_flags.json`.
"""

import dataclasses
import json
import typing
from typing import Any

from sartor.cli.flags import Flag
from sartor.config.checks import CHOICES, kinds_of
from sartor.config.sft_config import DEFAULTS, ENUMERATIONS, SFTConfig
from sartor.config.table import OPTIONS, Status
from sartor.config.texts import GROUPS

_REPEATED = ("map", "sample_prompts")
"""Lists whose flag may be given several times."""
_LISTS = ("report_to", "include_for_metrics", "label_names", "optim_target_modules", "accept_changes", *_REPEATED)
_KINDS = {bool: "bool", int: "int", float: "float", dict: "dict", str: "str"}


def field_flags() -> list[Flag]:
    """One flag per field, in the order of the help; those without effect or refused come last, without a group."""
    shown = {name: (group, text) for group, options in GROUPS.items() for name, text in options.items()}
    fields = {entry.name: entry for entry in dataclasses.fields(SFTConfig)}
    hints = typing.get_type_hints(SFTConfig)
    ordered = [*shown, *(name for name in fields if name not in shown)]
    flags = []
    for name in ordered:
        group, text = shown.get(name, ("", ""))
        metadata = fields[name].metadata
        kind, optional = _kind(name, hints[name])
        default = DEFAULTS[name]
        flags.append(
            Flag(
                name=name,
                kind=kind,
                default=getattr(default, "value", default),
                help=(text or str(metadata.get("help", ""))) if group else "",
                group=group,
                choices=_choices(name),
                aliases=tuple(alias.lstrip("-") for alias in metadata.get("aliases", ())),
                optional=optional,
                repeats=name in _REPEATED,
                refused=OPTIONS[name].remark if OPTIONS[name].status is Status.REFUSED else "",
            )
        )
    return flags


def _choices(name: str) -> tuple[str, ...]:
    if name == "loss_type":
        return (*CHOICES[name], "chunked_nll")
    if name in ENUMERATIONS:
        return tuple(str(member.value) for member in ENUMERATIONS[name])
    return CHOICES.get(name, ())


def _kind(name: str, hint: Any) -> tuple[str, bool]:
    """(kind, whether None is a value) from a field's annotation."""
    kinds, optional = kinds_of(hint)
    if name in _LISTS:
        # `--report_to none` is a name that transformers knows, not None.
        return "list", optional and name != "report_to"
    kinds = [typing.get_origin(kind) or kind for kind in kinds]
    if dict in kinds:
        return "dict", optional
    plain = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    # Of `bool | str` and `int | str` the text: the configuration converts it.
    kind = "str" if "str" in plain or not plain else plain[0]
    return kind, optional


def table() -> str:
    """The text of field_flags.json: a flag on each line, with what is not at its default."""
    rows = (
        {
            entry.name: getattr(flag, entry.name)
            for entry in dataclasses.fields(flag)
            if getattr(flag, entry.name) != entry.default
        }
        for flag in field_flags()
    )
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


if __name__ == "__main__":
    print(table(), end="")
