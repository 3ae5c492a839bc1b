"""One run at a time in a folder, in real processes: refused with the holder's name, free as soon as it has ended."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sartor.errors import RunFolderError
from sartor.report.staging import files_to_upload
from sartor.run import folder_lock
from sartor.run.folder_lock import LOCK_NAME, held, refuse_running

fcntl = pytest.importorskip("fcntl", reason="there are no such locks on this system")

HOLD = """
import sys, time
from sartor.run.folder_lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
FORK = """
import os, sys, time
from sartor.run.folder_lock import held
reader, writer = os.pipe()
with held(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.write(writer, b"I run")
        time.sleep(60)
    os.read(reader, 5)
    print(child, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(script: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a folder until its input ends, and the line that it has printed by then."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        try:
            yield process, line
        finally:
            process.kill()


def test_the_second_is_refused_with_the_firsts_process_host_and_start_and_changes_nothing(tmp_path: Path) -> None:
    with another(HOLD, tmp_path) as (process, _):
        content = (tmp_path / LOCK_NAME).read_bytes()
        started = json.loads(content)["started"]
        for _ in range(2):  # a refusal leaves nothing that refuses
            for attempt in (held(tmp_path).__enter__, lambda: refuse_running(tmp_path)):
                with pytest.raises(RunFolderError) as caught:
                    attempt()
                for told in (str(process.pid), socket.gethostname(), started, f"delete {tmp_path / LOCK_NAME}"):
                    assert told in str(caught.value)
        assert (tmp_path / LOCK_NAME).read_bytes() == content
        assert os.listdir(tmp_path) == [LOCK_NAME]
        assert not files_to_upload(tmp_path)
        process.communicate("")
    with held(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_a_killed_one_holds_nothing_though_its_children_live(tmp_path: Path) -> None:
    with another(FORK, tmp_path) as (process, child):
        with pytest.raises(RunFolderError):
            refuse_running(tmp_path)
        process.kill()
        process.wait()
        os.kill(int(child), 0)
        try:
            with held(tmp_path):
                assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
        finally:
            os.kill(int(child), signal.SIGKILL)
    assert not os.listdir(tmp_path)


def test_a_child_that_is_forked_neither_ends_its_parents_lock_nor_has_it(tmp_path: Path) -> None:
    script = """
import os, sys
from sartor.run.folder_lock import held
with held(sys.argv[1]):
    with open("/dev/null"):
        child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("held", flush=True)
        sys.stdin.read()
"""
    with another(script, tmp_path), pytest.raises(RunFolderError):
        refuse_running(tmp_path)


def test_reading_and_copying_the_folder_does_not_end_the_lock(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / LOCK_NAME).read_bytes()
        with pytest.raises(RunFolderError, match="which is this one"):
            refuse_running(tmp_path)
    refuse_running(tmp_path)


def test_of_many_that_begin_and_end_at_once_never_two_hold_a_folder(tmp_path: Path) -> None:
    """Each deletes the file when it ends, and others are opening it at that moment."""
    inside, most, num_held = 0, 0, 0
    count = threading.Lock()

    def run() -> None:
        nonlocal inside, most, num_held
        for _ in range(300):
            try:
                with held(tmp_path):
                    with count:
                        inside += 1
                        num_held += 1
                        most = max(most, inside)
                    with count:
                        inside -= 1
            except RunFolderError:
                pass

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert num_held > 100
    assert not os.listdir(tmp_path)


def test_a_holder_that_ends_while_the_next_one_begins_leaves_it_a_lock_that_others_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was opened, and is deleted before it is locked."""
    lock, waits = fcntl.flock, [True]

    def deleted_first(descriptor: int, how: int) -> None:
        if waits:
            waits.pop()
            (tmp_path / LOCK_NAME).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(folder_lock.fcntl, "flock", deleted_first)
    with held(tmp_path), pytest.raises(RunFolderError, match="which is this one"), held(tmp_path):
        pass


def test_a_folder_that_was_replaced_keeps_the_lock_of_its_new_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with held(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / LOCK_NAME).write_text("of another run")
    assert (folder / LOCK_NAME).exists()


@pytest.mark.parametrize(
    ("holder", "is_refused"),
    [
        ({"process": 1}, True),
        ({"host": "another-host"}, True),
        ({"process": 2**22 + 1}, False),
        ({}, False),
    ],
    ids=["alive", "on another host", "gone", "of this number"],
)
def test_on_a_disk_without_locks_what_the_file_says_counts(
    holder: dict[str, object], is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    whole = {"process": os.getpid(), "host": socket.gethostname(), "started": "yesterday", **holder}
    (tmp_path / LOCK_NAME).write_text(json.dumps(whole))
    if is_refused:
        with pytest.raises(RunFolderError, match=f"delete {tmp_path / LOCK_NAME}"), held(tmp_path):
            pass
        (tmp_path / LOCK_NAME).unlink()
    with held(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_where_the_system_has_no_such_locks_a_run_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with held(tmp_path):
        assert not os.listdir(tmp_path)
