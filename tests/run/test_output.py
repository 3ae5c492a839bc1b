"""Printing to a reader that has left is no error; for a run no error of writing is one, and what is lost is counted."""

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sartor.run.output import lines_may_be_lost, readers_may_leave


def test_what_cannot_be_written_is_dropped_and_the_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with readers_may_leave():
            print("nobody reads this", flush=True)
            print("nor this")
            assert sys.stdout.encoding == "utf-8"
            assert sys.stdout.fileno() == writer
            assert not sys.stdout.isatty()
        assert sys.stdout is stream
        print("harmless from then on", flush=True)


def test_what_can_be_written_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with readers_may_leave():
            print("kept", file=sys.stderr)
        assert (tmp_path / "out").read_text(encoding="utf-8") == "kept\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_not_taken_for_a_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError) as caught, open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PT011, PT012
        monkeypatch.setattr(sys, "stdout", stream)
        with readers_may_leave():
            print("no room", flush=True)
    assert caught.value.errno == errno.ENOSPC


def test_lines_that_have_no_room_are_counted_and_those_that_have_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that may not grow for a while; standard output is buffered, and standard error by the line."""
    resource = pytest.importorskip("resource")
    out, err = tmp_path / "out", tmp_path / "err"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with out.open("w", encoding="utf-8") as stdout, err.open("w", encoding="utf-8", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        with lines_may_be_lost():
            print("first")
            print("first", file=sys.stderr)
            resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
            try:
                for number in range(2_000):  # more than any buffer holds
                    print("a line", number)
                print("one\nand another", file=sys.stderr)
                sys.stdout.flush()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            print("last")
        assert sys.stdout is stdout
    assert out.read_text(encoding="utf-8") == "first\nlast\n"
    first, *told = err.read_text(encoding="utf-8").splitlines()
    assert first == "first"
    assert told == [
        "sartor: 2000 lines were lost from standard output: File too large.",
        "sartor: 2 lines were lost from standard error: File too large.",
    ]


def test_what_is_no_file_is_left_alone_and_what_the_stream_has_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebook = io.StringIO()
    with (tmp_path / "out").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", notebook)
        with lines_may_be_lost():
            assert sys.stderr is notebook
            assert sys.stdout.buffer is stream.buffer
            outer = sys.stdout
            with lines_may_be_lost():
                assert sys.stdout is outer


def test_streams_that_were_closed_lead_nowhere(tmp_path: Path) -> None:
    """A file that is opened gets no descriptor that a library prints to."""
    code = f"""
import os, sys
from sartor.run.output import lines_may_be_lost
with lines_may_be_lost():
    print("nowhere"), print("nowhere", file=sys.stderr)
    with open({str(tmp_path / "file")!r}, "w") as file:
        os.write(1, b"of a library"), os.write(2, b"of a library")
        assert file.fileno() > 2
assert sys.stdout is None and sys.stderr is None
"""
    done = subprocess.run(["sh", "-c", f"exec {shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-"], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""
