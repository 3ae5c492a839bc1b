"""Commands of ours as the user can type them: after `make demo` there is no `sartor` on the PATH."""

import shlex
import shutil
import sys
from pathlib import Path


def typed(*words: str) -> str:
    """The command line that runs `sartor` with these words, from this folder and with this PATH.

    Example: `typed("chat", "runs/a b")` is "sartor chat 'runs/a b'", or ".venv/bin/python -m sartor chat 'runs/a b'".
    """
    if shutil.which("sartor") is not None:
        return shlex.join(["sartor", *words])
    python, here = Path(sys.executable), Path.cwd()
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return shlex.join([str(shown), "-m", "sartor", *words])
