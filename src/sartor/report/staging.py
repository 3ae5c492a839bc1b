"""What leaves the machine in a push: chosen by name, cleaned of private paths, and checked for the token.

What comes in is a run folder; what goes out is a folder of its own that holds the files to upload and nothing else.
The list says what may leave, not what must stay: a file that nobody thought of stays.  Large files are hard links, so
the copy costs no space, and a checkpoint that is rotated away while it is being uploaded is uploaded whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sartor.errors import HubError, RunFolderError, SartorWarning
from sartor.report import metrics
from sartor.report.files import errors_name

CARD = "README.md"
METRICS = "metrics.jsonl"
TRAINER_STATE = "trainer_state.json"

WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
"""Not `*.safetensors`: an optimizer's state is kept in that format too."""

MODEL_FILES = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
"""What `from_pretrained` reads."""

FIGURES = {
    "figures/loss.png": "Loss per target token",
    "figures/lengths.png": "How long the rows are, in tokens",
    "figures/memory.png": "Memory over one step, by component",
    "figures/settings.png": "What consumes memory: one setting changed at a time",
}
"""Pictures of numbers that the card shows, and their titles."""

UPLOADED = (*MODEL_FILES, CARD, METRICS, *FIGURES)
"""Everything that a push takes from a run folder.  Rows, sample answers, pickles, optimizer states, the resolved
configuration and the plan are not in here, and neither are checkpoint folders."""

_STAGE_PREFIX = ".push-"
_PATH_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
_CLEANED = ("config.json", "tokenizer_config.json", "adapter_config.json", TRAINER_STATE)
_COPIED_BELOW_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?", re.ASCII)


def is_repository_id(name: str) -> bool:
    """Whether `name` can name a repository on the Hub: `gpt2`, `HuggingFaceTB/SmolLM2-360M`."""
    well_formed = _REPO_ID.fullmatch(name) is not None and len(name) <= 96 and not name.endswith((".", "-", ".git"))
    return well_formed and ".." not in name and "--" not in name


def is_hub_id(name: str) -> bool:
    """Whether `name` can be meant as a repository on the Hub: it is well formed, and nothing here has that name."""
    return is_repository_id(name) and not os.path.exists(name)


def public_name(name: str) -> str:
    """A model's or data set's name without the folders that lead to it: a Hub id stays, of a path the last part."""
    if is_hub_id(name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "a local folder"


def files_to_upload(
    folder: Path, allow_patterns: Iterable[str] = UPLOADED, ignore_patterns: Iterable[str] = ()
) -> dict[str, Path]:
    """The files of `folder` that leave in a push, by their path in the repository.

    Patterns are shell patterns (`fnmatch`) over the path inside `folder`, in which `*` stops at no `/`; so only what is
    in `folder` itself, among its figures, in a folder that holds an adapter (peft keeps further adapters there) or
    among further chat templates is looked at.  Python files that a configuration's `auto_map` names come with it.

    Raises:
        RunFolderError: no such folder.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: there is nothing to push. Save the model there first.")
    allowed, ignored = tuple(allow_patterns), tuple(ignore_patterns)
    found = {}
    for path in sorted(_candidates(folder)):
        name = path.relative_to(folder).as_posix()
        inside = name.rpartition("/")[2] if (path.parent / "adapter_config.json").is_file() else name
        if _matches(inside, allowed) and not _matches(name, ignored):
            found[name] = path
    for path in _custom_code(folder) if allowed else ():
        if not _matches(path.name, ignored):
            found[path.name] = path
    return found


def _candidates(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.name in ("additional_chat_templates", "figures") or (
            (path / "adapter_config.json").is_file() and not path.name.startswith(("checkpoint-", "."))
        ):
            yield from (file for file in path.iterdir() if file.is_file())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _custom_code(folder: Path) -> Iterable[Path]:
    """Python files without which a model that brings its own code does not load."""
    waiting = []
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            entries = _json_object(folder / name).get("auto_map", {}).values()
            for entry in (part for value in entries for part in (value if isinstance(value, list) else [value])):
                if isinstance(entry, str) and "--" not in entry:  # `repository--module.Class` lives on the Hub
                    waiting.append(folder / f"{entry.split('.')[0]}.py")
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in seen and path.is_file():
            seen.add(path)
            imports = re.findall(r"^\s*from\s+\.(\w+)\s+import\b", path.read_text(encoding="utf-8"), re.MULTILINE)
            waiting.extend(folder / f"{module}.py" for module in imports)
    return sorted(seen)


def stage(files: Mapping[str, Path], parent: Path, secrets: Iterable[str] = ()) -> Path:
    """Lay out `files` in a new folder inside `parent`, cleaned, and return it; the caller deletes it after the upload.

    Folders of local models in the configurations are cut down to their last part, and a `metrics.jsonl` with text in it
    (which may be anybody's data) is left out with a warning.

    Raises:
        HubError: one of `secrets` is in a file; names the file.
        RunFolderError: the folder cannot be made, or the disk is full.
    """
    _refuse_secrets(files, tuple(secret for secret in secrets if secret))
    with errors_name(parent):
        folder = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=parent))
        try:
            for name, path in files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _place(path, target)
        except BaseException:
            discard(folder)
            raise
    return folder


def discard(folder: Path) -> None:
    """Delete a folder that `stage` made; what is already gone is no error."""
    shutil.rmtree(folder, ignore_errors=True)


def _place(path: Path, target: Path) -> None:
    if path.name in _CLEANED:
        target.write_text(json.dumps(_cleaned(_json_object(path)), indent=2) + "\n", encoding="utf-8")
    elif path.name == METRICS and (text := metrics.keys_holding_text(path)):
        warnings.warn(
            f"{path} is not pushed: it holds text under {', '.join(sorted(text))}, which may be taken from your data. "
            "Log numbers only, or upload it yourself.",
            SartorWarning,
            stacklevel=2,
        )
    elif path.stat().st_size < _COPIED_BELOW_BYTES:
        shutil.copyfile(path, target)
    else:
        try:
            os.link(path.resolve(), target)
        except OSError:  # no hard links here (some network and FAT file systems)
            shutil.copyfile(path, target)


def _cleaned(content: Any) -> Any:
    """`content` without the folders of this machine: of local models, and of the best checkpoint, the last part."""
    if not isinstance(content, dict):
        return content
    result = dict(content)
    for key in _PATH_KEYS:
        if isinstance(result.get(key), str) and result[key]:
            result[key] = public_name(result[key])
    if isinstance(result.get("best_model_checkpoint"), str):
        result["best_model_checkpoint"] = re.split(r"[/\\]", result["best_model_checkpoint"].rstrip("/\\"))[-1]
    if isinstance(result.get("log_history"), list):
        result["log_history"] = [
            {key: value for key, value in record.items() if not metrics.holds_text(value)}
            for record in result["log_history"]
        ]
    return result


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"cannot push {path}: it is not readable as JSON ({error}). Save the model again."
        ) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"cannot push {path}: it does not hold a JSON object. Save the model again.")
    return content


def _refuse_secrets(files: Mapping[str, Path], secrets: tuple[str, ...]) -> None:
    needles = tuple(secret.encode() for secret in secrets)
    for name, path in files.items():
        if any(_contains(path, needle) for needle in needles):
            raise HubError(
                f"{path} contains your access token, so nothing was pushed. Remove it from that file ({name})."
            )


def _contains(path: Path, needle: bytes) -> bool:
    """Whether a file's bytes contain `needle`; of a safetensors file only the header, for the rest are numbers."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = min(int.from_bytes(file.read(8), "little"), 100 << 20)
            return needle in file.read(length)
        tail = b""
        while block := file.read(_READ_BYTES):
            if needle in tail + block:
                return True
            tail = block[-len(needle) :]
    return False
