"""Names that scripts for older versions of trl and transformers use, and what they are called today.

The constructors alone accept them, with a `RenamedWarning` that names the new one; they are no fields, so that
`to_dict`, `dataclasses.fields` and argument parsers never see them.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sartor.errors import ConfigurationError, RenamedWarning

TENSORBOARD_VARIABLE = "TENSORBOARD_LOGGING_DIR"

RENAMED: dict[str, str] = {
    "max_seq_length": "max_length",
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
}
"""Old name to the field that means the same, perhaps with another value."""


def _warmup_ratio(ratio: Any) -> float | None:
    """A share of all steps; `warmup_steps` below 1 is one, so 1 itself cannot be said there."""
    if ratio is None or ratio == 0:
        return None
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ConfigurationError(
            f"warmup_ratio={ratio!r} is not a share of the steps between 0 and 1. It is called warmup_steps today: "
            "below 1 it is a share, from 1 on a number of steps"
        )
    return float(ratio)


def _group_by_length(value: Any) -> str | None:
    return "group_by_length" if value else None


_CONVERTED: dict[str, Callable[[Any], Any]] = {"warmup_ratio": _warmup_ratio, "group_by_length": _group_by_length}
"""Old names whose value changes too; None means that the old value is today's default."""


def _translate_old_names(keywords: Mapping[str, Any], owner: str, stacklevel: int) -> dict[str, Any]:
    """The same keyword arguments under today's names; each old one is warned about.

    Args:
        keywords: what a constructor was called with.
        owner: for messages: whose arguments these are.
        stacklevel: of the warning; 3 points at the caller of the caller.

    Raises:
        ConfigurationError: an old name and its new one are both given, or an old value has no meaning today.
    """
    result = dict(keywords)
    problems: list[str] = []
    for old, new in RENAMED.items():
        if old not in result:
            continue
        value = result.pop(old)
        if new in keywords:
            problems.append(f"{owner}: {old} is the old name of {new}, and both are given: remove {old}")
            continue
        try:
            converted = _CONVERTED[old](value) if old in _CONVERTED else value
        except ConfigurationError as error:
            problems.extend(error.problems)
            continue
        if old not in _CONVERTED or converted is not None:
            result[new] = converted
        example = f"{new}={converted!r}" if old in _CONVERTED and converted is not None else new
        warnings.warn(f"{owner}: {old} is called {example} today", RenamedWarning, stacklevel=stacklevel)
    if problems:
        raise ConfigurationError(problems)
    return result


def _drop_removed(keywords: dict[str, Any], owner: str, stacklevel: int) -> None:
    """Take out the old names that have become something else than a field."""
    if "overwrite_output_dir" in keywords:
        del keywords["overwrite_output_dir"]
        warnings.warn(
            f"{owner}: overwrite_output_dir has no effect and no successor: remove it. Nothing is deleted from "
            "output_dir; to start over there, delete the folder yourself",
            RenamedWarning,
            stacklevel=stacklevel,
        )
    if "logging_dir" in keywords:
        folder = keywords.pop("logging_dir")
        if folder is None:
            return
        current = os.environ.get(TENSORBOARD_VARIABLE)
        if current is not None and current != str(folder):
            raise ConfigurationError(
                f"{owner}: logging_dir={str(folder)!r} and the environment variable {TENSORBOARD_VARIABLE}={current!r} "
                "contradict each other: remove logging_dir"
            )
        # transformers 5 reads the folder of TensorBoard's files from the environment alone.
        os.environ[TENSORBOARD_VARIABLE] = str(folder)
        warnings.warn(
            f"{owner}: logging_dir is the environment variable {TENSORBOARD_VARIABLE} today; it was set for this "
            "process",
            RenamedWarning,
            stacklevel=stacklevel,
        )


class OldNames(type):
    """Metaclass whose classes can be called with old names.

    A metaclass and not `__init__` or extra fields: so it also works for subclasses with an own `__post_init__`, for
    `dataclasses.replace`, pickle and deepcopy, and leaves `fields()` as it is.
    """

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        """Translate, then construct as usual."""
        owner = cls.__name__
        if keywords:
            keywords = _translate_old_names(keywords, owner, stacklevel=3)
            _drop_removed(keywords, owner, stacklevel=3)
        return super().__call__(*args, **keywords)

    @property
    def __signature__(cls) -> inspect.Signature:
        """Without it `inspect.signature` would show this metaclass's `*args, **keywords`."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])
