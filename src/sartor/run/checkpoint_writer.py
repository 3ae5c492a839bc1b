"""One checkpoint on its way: what is written at once, and the rest, for which training need not wait.

In: a model between two optimizer steps.  Out: a folder with a model that `from_pretrained` loads, and the state of
the run.  What it keeps true: a parameter that the model's own files hold bit for bit is not written a second time.

The model is written in one of three ways.

| model | how | when |
|---|---|---|
| of transformers, in whatever dtype it is published | as `model_files` says, from the snapshot | later |
| whose tensors transformers takes apart to save them, unless it is rounded for that | `save_pretrained` | later |
| every other: an adapter, which is small; one with an own `save_model` | `save_model` | at once |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartor.engine.precision import Masters
from sartor.engine.traits import is_adapter
from sartor.run import checkpoint, saving
from sartor.run.model_files import ModelFiles, model_files


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """A checkpoint that was begun."""

    folder: Path
    packed: checkpoint.Packed | None
    """None: all was written at once."""
    has_state: bool
    files: ModelFiles | None
    """That are due, with the `keys` of their tensors in the snapshot."""
    keys: Mapping[str, str]
    save_model: Callable[[Path], None] | None
    """Is due, where there are no `files`: writes the model, from the snapshot."""

    def write_rest(self) -> dict[str, list[int]]:
        """What was not written at once; the checksums that are known, for `checkpoint.seal`.

        Raises:
            ConfigurationError: a tensor has a dtype that cannot be written.
            OSError: the disk is full, or refuses.
        """
        known: dict[str, list[int]] = {}
        packed = self.packed
        if packed is None:
            return known
        if self.files is not None:
            parameters = packed.tree.get("parameters", {})
            saved = [name for name in parameters if self.files.is_exact(name)]
            stay = {name for name, key in self.keys.items() if key.startswith("/")} - set(saved)
            known |= self.files.write_weights(self.folder, packed.tensors, self.keys, stay.__contains__)
            for name in saved:
                del parameters[name]
            packed.tree["saved_parameters"] = saved
        elif self.save_model is not None:
            with packed.tensors.reading_all():
                self.save_model(self.folder)
        if self.has_state:
            if self.files is None:
                _leave_out_saved(packed, self.folder)
            known |= checkpoint.write_state(self.folder, packed)
        return known

    def end(self) -> None:
        """The snapshot is not needed any more."""
        if self.packed is not None:
            self.packed.tensors.end()


def begin(
    model: Any,
    masters: Masters,
    tokenizer: Any,
    folder: Path,
    content: Mapping[str, Any] | None,
    *,
    save_model: Callable[[Path], None] | None,
    is_lent: bool,
) -> CheckpointWriter:
    """Write what is written at once.

    Args:
        model: that is saved.
        masters: of its parameters.
        tokenizer: saved with it.
        folder: of the checkpoint.
        content: the state of the run, with the live tensors; None: the model alone.
        save_model: writes model and tokenizer at once, in a way of its own; None: as transformers does.
        is_lent: nobody changes parameters before the next optimizer step.

    Raises:
        RunFolderError: it cannot be written, or the disk is full.
        ConfigurationError: something in `content` can only be pickled.
    """
    files = None
    model_is_due = False
    keys: dict[str, str] = {}
    if save_model is None and not is_adapter(model):  # which is small, and peft changes its configuration meanwhile
        files = model_files(model, masters.arrival_dtype)
        model_is_due = files is None and is_lent and not masters.is_rounding
    packed: checkpoint.Packed | None = None
    beside: dict[str, torch.Tensor] = {}
    if files is not None:
        keys = {name: _key(name, content) for name in files.tensors}
        beside = {key: files.tensors[name] for name, key in keys.items() if not key.startswith("/")}
    if content is not None or files is not None or model_is_due:
        packed = checkpoint.pack_state(content or {}, beside, model_is_due=model_is_due)

    def save_alone(place: Path) -> None:
        saving.save_model_alone(model, masters, place)

    if save_model is not None:
        save_model(folder)
    else:
        if files is None and not model_is_due:
            save_alone(folder)
        saving.save_tokenizer(tokenizer, folder)
    if files is not None:
        files.write_configuration(folder)
    due = save_alone if model_is_due else None
    return CheckpointWriter(folder, packed, content is not None, files, keys, due)


def _key(name: str, content: Mapping[str, Any] | None) -> str:
    """Of a model's tensor in the snapshot: the state's own where it has it, which begins with a stroke."""
    for part in ("parameters", "buffers"):
        if content is not None and name in content[part]:
            return f"/{part}/{name}"
    return f"model/{name}"


def saved_tensors(folder: Path) -> dict[str, Path]:
    """Name of each tensor in the model's files of a checkpoint, and the file it is in."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _leave_out_saved(packed: checkpoint.Packed, folder: Path) -> None:
    """Return the parameters that the model's own files hold, bit for bit and under the same name."""
    from safetensors import safe_open

    places = saved_tensors(folder)
    left: dict[str, Any] = packed.tree["parameters"]
    saved = []
    for path in sorted(set(places.values())):
        with safe_open(path, "pt") as file:
            for name in [name for name in left if places.get(name) == path]:
                with packed.tensors.reading(f"/parameters/{name}") as tensor:
                    is_same = _same_bits(file.get_tensor(name), tensor)
                if is_same:
                    del left[name]
                    packed.tensors.returned(f"/parameters/{name}")
                    saved.append(name)
    packed.tree["saved_parameters"] = saved


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    words = _WORDS[one.element_size()]  # byte by byte would take five times as long
    return torch.equal(one.contiguous().view(words), other.cpu().contiguous().view(words))


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
