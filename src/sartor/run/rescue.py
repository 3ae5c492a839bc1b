"""A run that has trained ends with weights on the disk: what cannot be saved is found before, or saved in parts.

In: a run before its first step, or after its last one where something has failed.  Out: an error that says what to
change; or a folder `rescued-STEP` with all that can be written.  What it keeps true: checking writes nothing to the run
folder and changes no model; a rescue never hides the error that made it necessary.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sartor.engine.precision import Masters
from sartor.engine.traits import has_own_saving, is_adapter
from sartor.errors import ConfigurationError
from sartor.run import saving, tensor_file
from sartor.run.model_files import METADATA, model_files
from sartor.run.snapshot import Snapshot
from sartor.run.tensor_file import Entry
from sartor.wording import one_line

Part = tuple[str, Callable[[Path], Any], str]
"""What is saved, how, and what to do where that fails."""

_JSON = "Take out, or make a text of, what JSON does not know"


def check_savable(model: Any, masters: Masters, tokenizer: Any, *, is_own: bool) -> None:
    """See before the first step that a model, its configurations and its tokenizer can be saved, without the weights.

    `is_own`: whether the user's own `save_model` saves it.

    Raises:
        ConfigurationError: what cannot, and what to do.
    """
    problems = []
    with tempfile.TemporaryDirectory(prefix="sartor-") as folder:
        for what, save, advice in _small_parts(model, tokenizer, is_own=is_own):
            try:
                save(Path(folder))
            except OSError:  # of this folder, which is not the run's
                continue
            except Exception as error:
                problems.append(f"{what} cannot be saved, so training would be lost: {_sentence(error)} {advice}.")
    if not is_own and not is_adapter(model):
        try:
            model_files(model, masters.arrival_dtype)
        except RuntimeError as error:
            problems.append(
                f"the model's weights cannot be saved, so training would be lost: {_sentence(error)} Give each module "
                "weights of its own (copy.deepcopy), or name those that are shared in the model's _tied_weights_keys."
            )
    if problems:
        raise ConfigurationError(problems)


def keep_weights(
    model: Any,
    masters: Masters,
    tokenizer: Any,
    target: Path,
    step: int,
    error: BaseException,
    say: Callable[[str], None],
    *,
    is_own: bool,
) -> None:
    """Write what can be written into a folder, and say so, also on `error`.

    Args:
        model: that was trained.
        masters: of its parameters.
        tokenizer: saved with it.
        target: the folder, which is made anew.
        step: that the weights are of.
        error: that made it necessary.
        say: tells the user one thing.
        is_own: whether the user's own `save_model` saves the model.
    """
    shutil.rmtree(target, ignore_errors=True)
    missing = []
    weights: Part = ("the weights", lambda path: _save_weights(model, masters, path, is_own=is_own), "")
    for what, save, _ in [weights, *_small_parts(model, tokenizer, is_own=is_own)]:
        try:
            target.mkdir(parents=True, exist_ok=True)
            save(target)
        except Exception as problem:
            if what == "the weights":
                where = f"the weights of step {step} could not be saved in {target}: {_sentence(problem)}"
                tell(say, error, where)
                return
            missing.append(what)
    without = f" without {' and '.join(missing)}" if missing else ""
    tell(say, error, f"the weights of step {step} are in {target}{without}")


def tell(say: Callable[[str], None], error: BaseException, where: str) -> None:
    """Say where the weights are, and note it on the error."""
    say(f"{type(error).__name__} after the last step: {where}.")
    error.add_note(f"After the last step: {where}.")


def _small_parts(model: Any, tokenizer: Any, *, is_own: bool) -> Iterator[Part]:
    """All that is saved besides the weights, where this or transformers' code saves it."""
    if is_adapter(model):
        for name, config in model.peft_config.items():
            yield f"the configuration of the adapter {name!r}", copy.copy(config).save_pretrained, _JSON
    elif not is_own and not has_own_saving(model):
        yield "the model's configuration (model.config)", copy.copy(model.config).save_pretrained, _JSON
        if model.can_generate() and model.generation_config is not None:
            yield (
                "the model's generation settings (model.generation_config)",
                model.generation_config.save_pretrained,
                "For example: model.generation_config.do_sample = True; or, in the model's folder, in "
                "generation_config.json",
            )
    if tokenizer is not None:
        yield "the tokenizer", tokenizer.save_pretrained, _JSON


def _save_weights(model: Any, masters: Masters, folder: Path, *, is_own: bool) -> None:
    """As transformers saves them, else each tensor as it is: of an adapter's model those that are trained."""
    if not is_own or is_adapter(model):
        try:
            saving.save_model_alone(model, masters, folder)
            return
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if is_adapter(model):
        file = "trained_parameters.safetensors"
        tensors = {name: value.detach() for name, value in parameters.items() if value.requires_grad}
    else:
        file = "model.safetensors"
        state = model.state_dict()
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    entries = [
        Entry(name, name, masters.arrival_dtype(parameters[name]) if name in parameters else value.dtype)
        for name, value in tensors.items()
    ]
    tensor_file.write(folder / file, Snapshot(tensors), entries, METADATA)


def _sentence(error: Exception) -> str:
    text = one_line(error)
    return text if text.endswith(".") else f"{text}."
