"""Runs pytest on other trees of this project, forked from a process that has imported the heavy libraries already.

A script of its own, so that nothing of this tree is imported: a line of JSON on standard input names the `root` of a
tree, the `tests` and a file for their `output`.  Answers are a line with the process' id and one with pytest's exit
code.
"""

import importlib
import json
import os
import sys

HEAVY = (
    "torch",
    "transformers.trainer",
    "transformers.models.llama",
    "datasets",
    "peft",
    "trl",
    "hypothesis",
    "pytest",
)


def serve() -> None:
    """Answer until standard input ends."""
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            run(request["root"], request["tests"], request["output"])
        print(json.dumps({"pid": process}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}), flush=True)


def run(root: str, tests: list[str], output: str) -> None:
    """Become pytest in another tree; does not return."""
    import pytest

    code = 3
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        os.setpgid(0, 0)
        os.chdir(root)
        os.environ["PYTHONPATH"] = os.path.join(root, "src")
        sys.path[:] = [
            os.path.join(root, "src"),
            root,
            *(path for path in sys.path if path != os.path.dirname(__file__)),
        ]
        code = int(pytest.main(["-x", "-q", "--no-header", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
