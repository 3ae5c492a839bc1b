"""A model's folder, looked at before it is used: everything that its names lead to lies in it.

In: the folder of a model, an adapter or a tokenizer, perhaps somebody else's.  Out: nothing, or an error that lists
what leads out of it.  Chat templates, vocabularies, configurations and code that are read from such a folder are
written into the run folder again, and pushed from there; so a link or a name that leads to a private file would publish
it.  Weights may be links, since only tensors are read of them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from sartor.errors import ModelError
from sartor.report.staging import modules_named

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"})
_CONFIGURATIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_FOLDERS = ("additional_chat_templates",)
"""That `from_pretrained` reads, besides those of code."""
_VERSIONED = ("configuration_files", "fast_tokenizer_files")
"""Lists of files of which transformers reads one, by its own version."""
_UNREAD = "special_tokens_map_file"
"""Older versions wrote a path there, which nothing reads."""


def check(folder: str | os.PathLike[str]) -> None:
    """See that nothing in a model's folder leads out of it; a Hub id and a missing folder are none of its business.

    A folder of the Hub's cache may have links to the cache's own blobs.  A hard link, and a folder that was mounted,
    cannot be told from what was written there.

    Raises:
        ModelError: something does; names all that does.
    """
    if not os.path.isdir(folder):
        return
    root = Path(folder)
    homes = _homes(root.resolve())
    problems = list(dict.fromkeys([*_links(root, homes), *_names(root, homes)]))
    if problems:
        raise ModelError(
            f"{folder} leads to files outside of it: {'; '.join(problems)}. What is read of a model's folder is "
            "written into the run folder, and may be pushed. If you mean these files, put copies of them into the "
            "folder."
        )


def _homes(root: Path) -> tuple[Path, ...]:
    """Where the files of a folder may lie: in it, and for a snapshot of the Hub's cache among the cache's blobs."""
    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith("models--"):
        return root, repository / "blobs", repository.parent / "blobs"
    return (root,)


def _is_at_home(path: Path, homes: Iterable[Path]) -> bool:
    found = Path(os.path.realpath(path))  # which a link to itself does not stop
    return any(found.is_relative_to(home) for home in homes)


def _links(root: Path, homes: tuple[Path, ...]) -> Iterator[str]:
    """Files and folders that `from_pretrained` may read, where a link leads out."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            inner = sorted(path.iterdir()) if path.name in _FOLDERS else []
        else:
            inner = [path] if path.suffix not in _WEIGHTS else []
        for file in inner:
            if not _is_at_home(file, homes):
                yield f"{file.relative_to(root)} is {os.path.realpath(file)}"


def _names(root: Path, homes: tuple[Path, ...]) -> Iterator[str]:
    """Files that a configuration, an index or code names, where they lie outside."""
    code = {path.name for path in root.glob("*.py")}
    for file in _CONFIGURATIONS:
        content = _json_object(root / file)
        modules = [f"{module}.py" for module in modules_named(content)]
        code.update(modules)
        listed = [name for key in _VERSIONED for name in _strings(content.get(key))]
        yield from (f"{file} names {name}" for name in [*modules, *listed] if _leads_out(root, name, homes))
        if file == "tokenizer_config.json":
            yield from (f"{file} names {name}" for name in _opened(content) if not _is_at_home(Path(name), homes))
    for index in sorted(root.glob("*.index.json")):
        weight_map = _json_object(index).get("weight_map")
        names = set(_strings(list(weight_map.values()))) if isinstance(weight_map, dict) else set()
        yield from (f"{index.name} names {name}" for name in sorted(names) if _has_way_out(name))
    for name in sorted(code):
        if not _leads_out(root, name, homes) and (root / name).is_file():
            yield from (f"{name} imports {imported}" for imported in _imports(root / name))


def _has_way_out(name: str) -> bool:
    return PurePath(name).is_absolute() or ".." in PurePath(name).parts


def _leads_out(root: Path, name: str, homes: tuple[Path, ...]) -> bool:
    return _has_way_out(name) or not _is_at_home(root / name, homes)


def _opened(content: dict[str, Any]) -> Iterator[str]:
    """Paths in a tokenizer's configuration that a tokenizer's class may open as they stand."""
    given = [value for key, value in content.items() if key.endswith("_file") and key != _UNREAD]
    for name in [*_strings(given), *_strings(content.get("init_inputs"))]:
        if os.path.isfile(name):
            yield name


def _imports(path: Path) -> list[str]:
    """Relative imports that are no module's name: transformers looks for them in all of the text, and copies files."""
    from transformers.dynamic_module_utils import get_relative_imports

    try:
        return sorted(name for name in get_relative_imports(path) if not re.fullmatch(r"[\w.]+", name))
    except (OSError, ValueError):  # loading tells
        return []


def _strings(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _json_object(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it cannot be read, which loading tells."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
