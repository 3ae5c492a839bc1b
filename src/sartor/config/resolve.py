"""From one large configuration to one small frozen settings record per room, and to the file that a run leaves."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from sartor.config import checks
from sartor.config.environment import environment_problems
from sartor.config.sft_config import DEFAULTS, SFTConfig, cross_problems, field_problems
from sartor.errors import ConfigurationError, SartorWarning
from sartor.masking import masked
from sartor.records import DataSettings, EngineSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration, cut up for the rooms."""

    data: DataSettings
    eval_data: DataSettings
    """The same, but for `eval_packing`."""
    engine: EngineSettings
    notes: tuple[str, ...] = ()
    """One sentence per option that is set and has no effect."""


def resolve(args: SFTConfig) -> Settings:
    """Check `args` once more, for they may have been changed since they were constructed, and hand out the settings.

    Options without effect are named in one `SartorWarning` each.

    Raises:
        ConfigurationError: with all problems found.
    """
    problems = {f"environment {number}": text for number, text in enumerate(environment_problems())}
    problems |= field_problems(args)
    if not problems:  # values of a wrong type cannot be compared with each other
        problems |= cross_problems(args)
    if problems:
        raise ConfigurationError(list(problems.values()))
    notes = checks.without_effect(args, DEFAULTS)
    for note in notes:
        warnings.warn(note, SartorWarning, stacklevel=2)
    data = DataSettings(
        **_same_names(args, DataSettings),
        num_proc=args.dataset_num_proc,
        mapping=checks.parse_mapping(args.map),
    )
    engine = EngineSettings(
        **{**_same_names(args, EngineSettings), "bf16": bool(args.bf16)},
        label_smoothing=args.label_smoothing_factor,
        compile_backend=args.torch_compile_backend if args.torch_compile else None,
        compile_mode=args.torch_compile_mode,
    )
    eval_packing = args.packing if args.eval_packing is None else bool(args.eval_packing)
    return Settings(data, replace(data, packing=eval_packing), engine, notes)


def _same_names(args: SFTConfig, record: type[DataSettings | EngineSettings]) -> dict[str, Any]:
    """The fields of a settings record that are options under the same name."""
    return {entry.name: getattr(args, entry.name) for entry in fields(record) if entry.name in DEFAULTS}


def resolved_configuration(args: SFTConfig) -> dict[str, Any]:
    """Every field as JSON can hold it, for the run folder.  Secrets are masked, also inside dicts."""
    settings: dict[str, Any] = masked(
        {entry.name: _as_json(getattr(args, entry.name)) for entry in fields(args) if entry.init}
    )
    return settings


def _as_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(content) for key, content in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_as_json(content) for content in value]
    if hasattr(value, "to_dict"):  # accelerate's and quantization settings
        return _as_json(value.to_dict())
    return str(value).removeprefix("torch.")  # torch.bfloat16 is bfloat16 in transformers' own files
