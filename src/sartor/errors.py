"""Every error a user can cause, in one tree, and the warning category of everything Sartor warns about.

Each message says what is wrong, where (file and row, or option) and what to do.  The command line prints these
without a traceback and exits with code 2; anything else is a defect of Sartor's and keeps its traceback.
"""

from collections.abc import Sequence

from sartor.masking import masked_text


class SartorError(Exception):
    """Base of all errors that a user can cause and mend.  Secrets in their messages are masked."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(masked_text(one) if isinstance(one, str) else one for one in arguments))


class ConfigurationError(SartorError, ValueError):
    """Options that do not fit together, are out of range, or are not supported.

    Holds all problems found, not the first.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(
            masked_text(problem) for problem in ((problems,) if isinstance(problems, str) else problems)
        )
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))
            super().__init__(f"{len(self.problems)} problems with the configuration:\n{lines}")


class DataError(SartorError, ValueError):
    """Rows that cannot be read, converted or trained on; names file, row and content."""


class ModelError(SartorError, ValueError):
    """A model that cannot be loaded, or that the engine cannot train correctly."""


class OverrideError(SartorError, TypeError):
    """A subclass overrides a method of transformers' Trainer that Sartor does not call."""


class RunFolderError(SartorError, OSError):
    """The run folder cannot be used: it holds another run, is not writable, or the disk is full."""


class DiskFullError(RunFolderError):
    """What was to be written does not fit; what was there before is as it was."""


class HubError(SartorError, RuntimeError):
    """The Hub refused, or cannot be reached."""


class NonFiniteError(SartorError, ArithmeticError):
    """A loss or gradient that is not finite; names the step and the rows of its batch."""


class OutOfMemoryError(SartorError, MemoryError):
    """Memory ran out, and nothing is left that would need less."""


class ForeseenMemoryError(MemoryError):
    """Memory would run out; nothing was tried.  Raised and caught within a run, and taken as any other MemoryError."""


_SIGNS = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "cannot allocate memory",
    "could not create a memory",  # oneDNN
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, whoever raised it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class SartorWarning(UserWarning):
    """Category of every warning that Sartor itself raises.  Secrets in their messages are masked."""

    def __init__(self, message: str = "") -> None:
        super().__init__(masked_text(message))


class DefectWarning(SartorWarning):
    """A defect of Sartor's own, without which the run goes on; worth a report."""


class RenamedWarning(SartorWarning, FutureWarning):
    """An option or argument was given under a name that older versions of trl or transformers used."""
