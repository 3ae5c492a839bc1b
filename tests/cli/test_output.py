"""Printing to a reader that has left is no error; any other error of writing still is."""

import errno
import os
import sys
from pathlib import Path

import pytest

from sartor.cli.output import readers_may_leave


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
