"""Runs commands as processes of their own, forked from one that has imported the heavy libraries already.

A line of JSON on standard input asks for a command: `argv`, `cwd`, `umask` (or null), and files for `stdout` and
`stderr` (or "left", a pipe that nobody reads; or "closed", as Python begins where a shell says `>&-`).  Answers are a
line with the process' id, and one with its exit code when it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, NoReturn


def serve() -> None:
    """Answer until standard input ends."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            _run(request)
        _answer({"pid": process})
        _answer({"code": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])})


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _run(request: dict[str, Any]) -> NoReturn:
    from sartor.cli.main import main

    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(request["cwd"])
        if request["umask"] is not None:
            os.umask(request["umask"])
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            if request[name] == "closed":
                os.close(descriptor)
                setattr(sys, name, None)
            else:
                os.dup2(_opened(request[name]), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = main(request["argv"])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _opened(path: str) -> int:
    if path != "left":
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


if __name__ == "__main__":
    serve()
