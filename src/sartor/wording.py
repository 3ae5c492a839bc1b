"""How amounts, lists, commands and other libraries' errors read within a sentence of ours."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def amount(num_bytes: float, digits: int = 2) -> str:
    """Bytes in GB, or in MB where they are few: "1.25 GB", "12.50 MB"."""
    return f"{num_bytes / 1e9:.{digits}f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.{digits}f} MB"


def listed(names: Sequence[object], at_most: int = 8) -> str:
    """The first few with commas between them, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(str, names[:at_most])) + more


def first_line(error: BaseException) -> str:
    """The first line of a library's many-lined message, or the error's class where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def one_line(error: BaseException) -> str:
    """The whole message in one line."""
    return " ".join(str(error).split())


def typed(*words: str) -> str:
    """The command line that runs `sartor` with these words, from this folder and with this PATH.

    After `make demo` there is no `sartor` on the PATH.

    Example: `typed("chat", "runs/a b")` is "sartor chat 'runs/a b'", or ".venv/bin/python -m sartor chat 'runs/a b'".
    """
    if shutil.which("sartor") is not None:
        return shlex.join(["sartor", *words])
    python, here = Path(sys.executable), Path.cwd()
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return shlex.join([str(shown), "-m", "sartor", *words])
