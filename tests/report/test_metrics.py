from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sartor.errors import ConfigurationError, RunFolderError
from sartor.report.metrics import MetricsFile, keys_holding_text, last_run, read


def test_a_record_is_in_the_file_as_one_line_of_json_as_soon_as_write_returns(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        file.write({"loss": 2.5, "step": 10, "note": "a\nb", "ok": True, "none": None})
        assert file.path.read_text() == '{"loss": 2.5, "step": 10, "note": "a\\nb", "ok": true, "none": null}\n'
        file.write({"loss": 2.0})
        assert read(file.path) == [{"loss": 2.5, "step": 10, "note": "a\nb", "ok": True, "none": None}, {"loss": 2.0}]


def test_what_is_not_finite_is_valid_json_and_comes_back(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m.jsonl") as file:
        file.write({"a": math.nan, "b": math.inf, "c": -math.inf, "nested": {"d": [math.nan, 1.0]}})
    line = file.path.read_text()
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "nested": {"d": ["NaN", 1.0]}}
    back = read(file.path)[0]
    assert math.isnan(back["a"])
    assert (back["b"], back["c"], back["nested"]["d"][1]) == (math.inf, -math.inf, 1.0)


def test_numbers_of_libraries_are_plain_numbers(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m.jsonl") as file:
        file.write(
            {
                "np": np.float32(0.5),
                "npi": np.int64(2),
                "npb": np.bool_(True),
                "array": np.arange(3),
                "torch": torch.tensor(0.25),
                "torchi": torch.tensor([1, 2]),
                "huge": 10**20,
            }
        )
    assert json.loads(file.path.read_text()) == {
        "np": 0.5,
        "npi": 2,
        "npb": True,
        "array": [0, 1, 2],
        "torch": 0.25,
        "torchi": [1, 2],
        "huge": 10**20,
    }


def test_what_json_cannot_hold_is_refused_by_its_key_and_nothing_is_written(tmp_path: Path) -> None:
    with (
        MetricsFile(tmp_path / "m.jsonl") as file,
        pytest.raises(ConfigurationError, match=r"'report\.inner' is a object"),
    ):
        file.write({"loss": 1.0, "report": {"inner": object()}})
    assert file.path.read_bytes() == b""


def test_an_existing_file_is_continued_after_dropping_what_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    whole = b"".join(b'{"step": %d}\n' % step for step in range(1000))
    path.write_bytes(whole + b'{"step": 1000, "pad": "' + b"x" * 10_000)
    with MetricsFile(path) as file:
        assert path.read_bytes() == whole
        file.write({"step": 1000})
    assert [record["step"] for record in read(path)] == list(range(1001))
    path.write_bytes(b'{"never finished')
    MetricsFile(path).close()
    assert path.read_bytes() == b""


def test_a_full_disk_is_told_with_the_path_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1})
    write = os.write

    def short_of_space(descriptor: int, data: bytes) -> int:
        if len(data) > 4:
            return write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        os, "write", lambda d, data: short_of_space(d, data) if len(data) != 4 else short_of_space(d, b"")
    )
    with pytest.raises(RunFolderError, match=r"No space left on device. Free some space") as caught:
        file.write({"step": 2, "x": 1})
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b'{"step": 1}\n'
    file.write({"step": 3})
    assert [record["step"] for record in read(path)] == [1, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_device_without_space_gives_the_same_error() -> None:
    with MetricsFile("/dev/full") as file, pytest.raises(RunFolderError, match="/dev/full: No space left"):
        file.write({"step": 1})


def test_a_folder_that_vanished_is_an_error_not_a_silent_loss(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = MetricsFile(folder / "m.jsonl")
    shutil.rmtree(folder)
    with pytest.raises(RunFolderError, match=r"run does not exist \(any more\)"):
        file.write({"step": 1})
    folder.mkdir()
    (folder / "m.jsonl").touch()
    with pytest.raises(RunFolderError, match="was replaced"):
        file.write({"step": 1})


def test_errors_of_opening_reading_and_writing_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        MetricsFile(tmp_path / "nowhere" / "m.jsonl")
    with pytest.raises(RunFolderError, match="cannot read"):
        read(tmp_path / "nowhere.jsonl")
    file = MetricsFile(tmp_path / "m.jsonl")
    file.close()
    file.close()
    with pytest.raises(RunFolderError, match="it was closed"):
        file.write({"step": 1})


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b""])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(RunFolderError, match="line 2 is not"):
        read(path)


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    assert read(path) == [{"step": 1}]


def test_text_is_found_wherever_it_is_and_numbers_are_not_text(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m.jsonl") as file:
        file.write({"loss": math.nan, "deep": {"x": ["row"]}, "n": [1, 2]})
        file.write({"answer": "row", "ok": True, "none": None})
    assert keys_holding_text(file.path) == {"deep", "answer"}


def test_where_the_step_goes_back_another_run_begins() -> None:
    def steps(*numbers: int) -> list[dict[str, int]]:
        return [{"step": number} for number in numbers]

    assert last_run(steps(1, 2, 2, 0, 1, 1)) == steps(0, 1, 1)
    assert last_run(steps(3, 2, 1)) == steps(1)
    assert last_run(steps(1, 2, 2)) == steps(1, 2, 2)
    assert last_run([]) == []
