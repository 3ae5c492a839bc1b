"""Why a forecast of memory failed, and whose fault that is.

In: what a simulation raised.  Out: a line that says why there is no forecast.  What it keeps true: a forecast never
ends a run, whatever a model, an adapter or a quantization does on tensors without memory; and a defect of Sartor's own
is never taken for a model that cannot be simulated: it is a `DefectWarning`, which the tests make an error.
"""

from __future__ import annotations

import sys
import traceback
import warnings

from sartor.errors import DefectWarning, SartorError
from sartor.wording import first_line

DEFECTS = (TypeError, AttributeError, LookupError, NameError, ArithmeticError, AssertionError)
"""What a program raises that is wrong.  Libraries refuse with these, too; the place tells them apart."""
_TOOLS = frozenset({"torch", "numpy"}) | sys.stdlib_module_names
"""What is raised in these is laid to who called them."""
_LONGEST_LINE = 200


def reason_of(error: Exception) -> str:
    """Why there is no forecast, in a line; a defect of Sartor's own is warned about besides.

    Example: an adapter whose layer mixes tensors without memory with others makes torch raise an AssertionError.  torch
    was called by peft, so that is a model that cannot be simulated.  The same from `sartor.engine` is a defect.
    """
    reason = first_line(error)[:_LONGEST_LINE]
    if _is_own_defect(error):
        warnings.warn(
            f"the memory could not be foreseen because of a defect of Sartor's: {type(error).__name__}: {reason} (in "
            f"{_place(error)}). Training is not touched by it. Please report it.",
            DefectWarning,
            stacklevel=2,
        )
    return reason


def _is_own_defect(error: Exception) -> bool:
    """Whether Sartor's code raised it, or called what raised it with something that it cannot take."""
    if isinstance(error, SartorError) or not isinstance(error, DEFECTS):
        return False
    packages = [
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    callers = [package for package in packages if package not in _TOOLS]
    return bool(callers) and callers[-1] == "sartor"


def _place(error: Exception) -> str:
    """The innermost line of Sartor's."""
    lines = [
        f"{frame.f_globals['__name__']}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("sartor.")
    ]
    return lines[-1]
