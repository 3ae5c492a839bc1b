"""`--config FILE`: YAML, JSON or TOML under the names of the flags, turned into what a command line would say."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor.cli.flags import Flag, Given, keys_of
from sartor.errors import ConfigurationError

_SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "yaml", ".toml": "toml"}


def with_files(givens: Sequence[Given], flags: tuple[Flag, ...], problems: list[str]) -> list[Given]:
    """A command line's options with those of the files that its `--config` names before them; the last one wins.

    What is wrong with a file is added to `problems`.
    """
    from_files: list[Given] = []
    for given in givens:
        if given.key != "config":
            continue
        if len(given.texts) != 1:
            problems.append("--config needs a file")
            continue
        try:
            from_files += read(given.texts[0], flags)
        except ConfigurationError as error:
            problems += error.problems
    return [*from_files, *(given for given in givens if given.key != "config")]


def read(path: str, flags: tuple[Flag, ...]) -> list[Given]:
    """The options in a file, in its order.

    `null` in YAML means None where the option has that value, else the option's default.

    Raises:
        ConfigurationError: no such file, not readable as its suffix says, or not a table of options.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigurationError(_no_such_file(file))
    table = _load(file)
    if not isinstance(table, Mapping):
        raise ConfigurationError(
            f"--config {path}: it must hold options as `name: value`, not a {type(table).__name__}"
        )
    if "env" in table:
        raise ConfigurationError(f"--config {path}: env is not supported: set environment variables in the shell")
    if "config" in table:
        raise ConfigurationError(f"--config {path}: config: a file cannot name another one: put all options into one")
    known = keys_of(flags)
    givens = []
    for key, value in table.items():
        flag = known.get(str(key).replace("-", "_"))
        if value is None and flag is not None and not flag.optional:
            continue
        givens.append(Given(str(key), _texts(value, flag), where=file.name))
    return givens


def _load(file: Path) -> Any:
    kind = _SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise ConfigurationError(f"--config {file}: its name must end in .yaml, .yml, .json or .toml")
    text = file.read_text(encoding="utf-8")
    if kind == "toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"--config {file} is no TOML: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--config {file} is no YAML: {error}") from error


def _texts(value: Any, flag: Flag | None) -> tuple[str, ...]:
    if flag is not None and flag.kind == "list" and isinstance(value, Mapping):
        return tuple(f"{key}={content}" for key, content in value.items())
    if isinstance(value, Mapping):
        return (json.dumps(value),)
    if isinstance(value, list | tuple):
        return tuple(_text(content) for content in value)
    return (_text(value),)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _no_such_file(file: Path) -> str:
    siblings = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, siblings, n=1)
    return f"--config {file}: there is no such file" + (f"; did you mean {file.parent / near[0]}?" if near else "")
