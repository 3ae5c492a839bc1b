"""What leaves the machine in a push: chosen by name, cleaned of private paths, and checked for the token.

What comes in is a run folder, and what the run has written there; what goes out is a folder of its own that holds the
files to upload and nothing else.  The list says what may leave, not what must stay: a file that nobody thought of
stays.  Only regular files that lie in the run folder leave: no link is followed, and no name leads out of it.  Large
files are hard links, so the copy costs no space, and a checkpoint that is rotated away while it is being uploaded is
uploaded whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sartor.errors import HubError, RunFolderError, SartorWarning
from sartor.report import metrics
from sartor.report.files import errors_name

CARD = "README.md"
METRICS = "metrics.jsonl"
TRAINER_STATE = "trainer_state.json"

_SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
WHOLE_WEIGHTS = (_SINGLE, "model-*-of-*.safetensors", INDEX)
"""Of a model, not of an adapter."""
WEIGHTS = (*WHOLE_WEIGHTS, _ADAPTER_WEIGHTS)
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
_FOLDERS = ("additional_chat_templates", "figures")
_MODULE = re.compile(r"\w+")
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
    folder: Path,
    allow_patterns: Iterable[str] = UPLOADED,
    ignore_patterns: Iterable[str] = (),
    made: Collection[str] | None = None,
) -> dict[str, Path]:
    """The files of `folder` that leave in a push, by their path in the repository.

    Patterns are shell patterns (`fnmatch`) over the path inside `folder`; below a folder that holds an adapter (peft
    keeps further adapters there) over the last part.  Python files that a configuration's `auto_map` names come with
    them.  A link is left out with a warning, wherever it leads.  A hard link, and a folder that was mounted, cannot be
    told from what was written there.

    Args:
        folder: of a run, or a checkpoint.
        allow_patterns: that a file must match.
        ignore_patterns: that it must not match.
        made: names of the files that the run has written.  None where nobody knows: then the model that
            `from_pretrained` would load is taken, and no folder but of chat templates and figures.

    Raises:
        RunFolderError: no such folder; or, without `made`, it cannot be told which weights are the model's.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: there is nothing to push. Save the model there first.")
    allowed, ignored = tuple(allow_patterns), tuple(ignore_patterns)
    names = _names_of_the_model(folder) if made is None else set(made)
    wanted = []
    for name in sorted(names):
        parent, _, last = name.rpartition("/")
        is_of_adapter = made is not None and f"{parent}/adapter_config.json" in names
        if _matches(last if is_of_adapter else name, allowed) and not _matches(name, ignored):
            wanted.append(name)
    if allowed:
        code = _custom_code(folder)
        wanted += [name for name in code if (made is None or name in made) and not _matches(name, ignored)]
    return {name: folder / name for name in wanted if _may_leave(folder, name)}


def names_in(folder: Path) -> set[str]:
    """The regular files in and below `folder`, by their path inside; no link is followed."""
    names = (Path(root, file).relative_to(folder).as_posix() for root, _, files in os.walk(folder) for file in files)
    return {name for name in names if lies_in(folder, name)}


def lies_in(folder: Path, name: str) -> bool:
    """Whether `name` is a regular file in `folder`, to which no link, no `..` and no absolute path leads."""
    root = folder.resolve()
    path = root / name
    return path.is_file() and path.resolve() == path and path.is_relative_to(root)


def _may_leave(folder: Path, name: str) -> bool:
    if lies_in(folder, name):
        return True
    if os.path.lexists(folder / name):
        warnings.warn(
            f"{folder / name} is not pushed: it is a link, lies behind one, or is no regular file. Put a copy there "
            "if it is to be pushed.",
            SartorWarning,
            stacklevel=2,
        )
    return False


def _names_of_the_model(folder: Path) -> set[str]:
    """What belongs to the model that `from_pretrained` would load, and figures.

    Not shards that the index does not name, and no folder with an adapter: an earlier run may have left them.
    """
    names = {path.name for path in folder.iterdir() if not path.is_dir()}
    for inner in _FOLDERS:
        if (folder / inner).is_dir():
            names |= {f"{inner}/{path.name}" for path in (folder / inner).iterdir()}
    weights = {name for name in names if _matches(name, WEIGHTS)}
    whole = weights & {_SINGLE}
    if not whole and INDEX in weights:
        whole = {INDEX, *_shards(folder)}
    adapter = weights & {_ADAPTER_WEIGHTS}
    if whole and adapter:
        raise RunFolderError(
            f"{folder} holds the weights of a whole model and {_ADAPTER_WEIGHTS}, and one of them is of another run: "
            "move it away, or push with SFTTrainer.push_to_hub, which knows what it has written."
        )
    return names - weights | whole | adapter


def _shards(folder: Path) -> set[str]:
    """The files that the index of the weights names."""
    weight_map = _json_object(folder / INDEX).get("weight_map")
    shards = [str(name) for name in weight_map.values()] if isinstance(weight_map, dict) else ["nothing"]
    if missing := sorted({name for name in shards if not lies_in(folder, name)}):
        raise RunFolderError(
            f"cannot push {folder}: {INDEX} names {', '.join(missing)}, which is no file in that folder. Save the "
            "model again."
        )
    return set(shards)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _custom_code(folder: Path) -> list[str]:
    """Names of the Python files without which a model that brings its own code does not load."""
    waiting = [
        f"{module}.py"
        for name in ("config.json", "tokenizer_config.json")
        if lies_in(folder, name)
        for module in modules_named(_json_object(folder / name))
        if _MODULE.fullmatch(module)
    ]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen and os.path.lexists(folder / name):
            seen.add(name)
            if lies_in(folder, name):
                text = (folder / name).read_text(encoding="utf-8", errors="replace")
                imports = re.findall(r"^\s*from\s+\.(\w+)\s+import\b", text, re.MULTILINE)
                waiting.extend(f"{module}.py" for module in imports)
    return sorted(seen)


def modules_named(configuration: Mapping[str, Any]) -> list[str]:
    """The modules that a configuration's `auto_map` names.

    Those of another repository (`owner/name--module.Class`) are not among them: they live on the Hub.
    """
    auto_map = configuration.get("auto_map")
    values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return [entry.rpartition(".")[0] for entry in entries if isinstance(entry, str) and "--" not in entry]


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
    elif path.name == METRICS:
        target.write_bytes(metrics.lines_of_last_run(path))
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
