"""A folder or Hub id to a model and its tokenizer, ready to generate.

Comes in: a model's or a LoRA adapter's folder or Hub id.  Goes out: model (eval mode, on one device, in a dtype that
device computes well), tokenizer, and the sentences worth saying aloud.  A folder that is not what it should be gets an
error that says what lies there.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sartor import compat
from sartor.device import KINDS, default_kind, fast_dtypes, is_supported, kind_of, num_devices
from sartor.errors import ModelError
from sartor.wording import listed

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_ADAPTER_FILE = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class _Access:
    """How files of a Hub repository are reached; has no effect on folders."""

    revision: str | None
    token: str | None
    trust_remote_code: bool


def load_model(
    path_or_id: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> tuple[Any, Any, list[str]]:
    """Load a causal language model, or a base model with a LoRA adapter on it: (model, tokenizer, notes).

    `dtype` None: the model's own, but float32 where the device does not compute that well.  `base` replaces the base
    model that an adapter's configuration names.  Raises ModelError.
    """
    where = choose_device(device)
    wanted = parse_dtype(dtype)
    source = os.path.expanduser(str(path_or_id))
    access = _Access(revision, token, trust_remote_code)
    adapter = _adapter_config(source, access)
    if adapter is None:
        if base is not None:
            raise ModelError(
                f"a base model was given, but {source} is a whole model and no adapter: leave the base out."
            )
        tokenizer = _load_tokenizer(source, access)
        model = _load_whole(source, wanted, access)
        notes = []
    else:
        base_source = _find_base(source, adapter, base)
        base_access = _Access(adapter.get("revision") if base is None else None, token, trust_remote_code)
        tokenizer = _adapter_tokenizer(source, base_source, access, base_access)
        model = _load_whole(base_source, wanted, base_access)
        model = _put_adapter_on(model, source, tokenizer, access)
        notes = [f"an adapter on {base_source}"]
    if wanted is None:
        model, note = _fit_dtype(model, where)
        notes += note
    return model.to(where).eval(), tokenizer, notes


# --- device and dtype ------------------------------------------------------------------------------------------------


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else the first CUDA device, else the CPU.  Raises ModelError."""
    if device is None:
        kind = default_kind()
        return torch.device(kind.name) if kind.is_host else torch.device(kind.name, 0)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(
            f"no device is called {str(device)!r}: use cpu, cuda, or cuda:1 for the second GPU."
        ) from error
    if not is_supported(chosen):
        raise ModelError(f"device {chosen} is not supported: use {' or '.join(KINDS)}.")
    kind = kind_of(chosen)
    count = num_devices(kind)
    if not count:
        raise ModelError(f"device {chosen}: this machine, or this build of torch, has no {kind.label}; use cpu.")
    if not kind.is_host and (chosen.index or 0) >= count:
        raise ModelError(f"device {chosen}: there are {count} {kind.label} devices, counted from 0.")
    return chosen


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype from its name; "auto" and None mean that the model's own and the device decide.  Raises
    ModelError."""
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        if dtype not in DTYPES.values():
            raise ModelError(f"dtype {dtype} is not supported: use one of {', '.join(DTYPES)}.")
        return dtype
    name = dtype.removeprefix("torch.").lower()
    if name not in DTYPES:
        near = difflib.get_close_matches(name, DTYPES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}, or auto.{hint}")
    return DTYPES[name]


def computes_well(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions for products in `dtype`.

    On a CPU without them, bfloat16 products take 15 to 500 times as long as float32 ones.
    """
    return dtype not in (torch.bfloat16, torch.float16) or dtype in fast_dtypes(device)


def _fit_dtype(model: Any, device: torch.device) -> tuple[Any, list[str]]:
    """Widen to float32 where the device does not compute the model's own dtype well; a quantized model stays as it
    is."""
    if model.config.to_dict().get("quantization_config") is not None or computes_well(model.dtype, device):
        return model, []
    name = str(model.dtype).removeprefix("torch.")
    return model.to(torch.float32), [f"this {device.type} has no {name} instructions: computing in float32"]


# --- finding and reading ---------------------------------------------------------------------------------------------


def _adapter_config(source: str, access: _Access) -> dict[str, Any] | None:
    """The content of the source's adapter_config.json; None: a whole model.  Raises ModelError where it is neither."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / _ADAPTER_FILE).is_file():
            return _read_json(folder / _ADAPTER_FILE)
        if not (folder / "config.json").is_file():
            raise ModelError(_what_lies_there(folder))
        return None
    if folder.exists():
        raise ModelError(f"{source} is a file: give the folder of a model (the one with config.json), or a Hub id.")
    if _looks_like_path(source):
        without_parent = "" if folder.parent.is_dir() else f" Nor is there a folder {folder.parent}."
        raise ModelError(f"there is no folder {source}.{without_parent}{_near_folders(folder)}")
    from transformers.utils import find_adapter_config_file

    with _loading(source):
        found = find_adapter_config_file(source, revision=access.revision, token=access.token)
    return None if found is None else _read_json(Path(found))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object.")
    return content


def _looks_like_path(source: str) -> bool:
    """Whether it cannot be a Hub id, which is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source or source.endswith("/")


def _what_lies_there(folder: Path) -> str:
    """For a folder that holds no model: what it holds, and where models are nearby."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    what = listed(names, 12) or "nothing at all"
    message = f"{folder} holds no model: it has no config.json and no {_ADAPTER_FILE}, but {what}."
    near = [str(child) for child in sorted(folder.iterdir()) if child.is_dir() and _holds_model(child)]
    near += [str(folder.parent)] if _holds_model(folder.parent) else []
    return message + (f" A model lies in {', '.join(near[:5])}." if near else "")


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", _ADAPTER_FILE))


def _near_folders(path: Path) -> str:
    """For a folder that does not exist: names beside it that resemble its own."""
    parent = path.parent
    if not parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [e.name for e in parent.iterdir() if e.is_dir()], n=3)
    return f" Did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""


def _find_base(adapter_source: str, adapter: dict[str, Any], base: str | Path | None) -> str:
    """Where the adapter's base model is: as given, as its configuration says, or relative to the adapter's folder."""
    if base is not None:
        return os.path.expanduser(str(base))
    named = adapter.get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{adapter_source} is an adapter that does not say of which model: name its base (--base).")
    beside = Path(adapter_source) / named
    if not Path(named).is_dir() and not Path(named).is_absolute() and beside.is_dir():
        return str(beside.resolve())
    if _looks_like_path(named) and not Path(named).is_dir():
        raise ModelError(
            f"{adapter_source} is an adapter of the model in {named}, and there is no such folder: "
            f"name the base model's folder or Hub id (--base), or correct base_model_name_or_path in {_ADAPTER_FILE}."
        )
    return str(named)


def _adapter_tokenizer(adapter_source: str, base_source: str, access: _Access, base_access: _Access) -> Any:
    """The adapter's own tokenizer, which may have a template or tokens that the base's lacks; else the base's."""
    folder = Path(adapter_source)
    if folder.is_dir():
        has_own = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    else:
        with _loading(adapter_source):
            has_own = compat.has_file(adapter_source, _TOKENIZER_FILES[0], revision=access.revision, token=access.token)
    return _load_tokenizer(adapter_source, access) if has_own else _load_tokenizer(base_source, base_access)


def _load_tokenizer(source: str, access: _Access) -> Any:
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{source} holds a model but no tokenizer: copy the tokenizer's files "
            f"({', '.join(_TOKENIZER_FILES[:2])}, ...) of the model it was made from into it."
        )
    from transformers import AutoTokenizer

    with _loading(source):
        return AutoTokenizer.from_pretrained(source, **asdict(access))


def _load_whole(source: str, dtype: torch.dtype | None, access: _Access) -> Any:
    """A model with all of its weights: transformers fills missing ones with random numbers, which is refused here."""
    from transformers import AutoModelForCausalLM

    with _loading(source):
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or "auto", output_loading_info=True, **asdict(access)
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights of a {type(model).__name__} ({', '.join(missing[:3])}, ...): "
            "the files are incomplete, or belong to another kind of model."
        )
    return model


def _put_adapter_on(model: Any, source: str, tokenizer: Any, access: _Access) -> Any:
    """Wrap the base in the adapter, after growing its embeddings to the tokens that the tokenizer gained in
    training."""
    from peft import PeftModel

    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    with _loading(source):
        return PeftModel.from_pretrained(model, source, revision=access.revision, token=access.token)


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn what the libraries raise about files, configurations and the Hub into one ModelError that names the
    source."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        if "trust_remote_code" in reason:
            raise ModelError(
                f"{source} needs code of its own, which is not run unless you trust it: "
                "read it, then give --trust-remote-code."
            ) from error
        # `owner/name` may have been meant as a folder as well.
        near = "" if Path(source).exists() else _near_folders(Path(source))
        raise ModelError(f"{source} cannot be loaded: {reason}.{near}") from error
