"""Several processes prepare what one prepares, tell what is wrong with rows as one does, and are gone afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe, current_process
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import Dataset

from sartor import errors
from sartor.batching.packing import pack
from sartor.data.encoding import parts, workers
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.request import Request
from sartor.data.rows.formats import Reading
from sartor.errors import DataError, SartorError
from sartor.records import DataSettings, PreparedData, RowFormat
from tests.data.conftest import make_small_tokenizer


def conversation(number: int) -> dict[str, Any]:
    answer = "It smells of rubber boots. " * (1 + number % 7)
    return {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": answer}]}


ROWS = [conversation(number) for number in range(450)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_BATCH", 50)
    monkeypatch.setattr("sartor.data.encoding.assemble.ROWS_PER_BATCH", 50)


def ready(rows: list[dict[str, Any]], num_proc: int, *, formatting_func: Any = None, **options: Any) -> PreparedData:
    settings = DataSettings(num_proc=num_proc, data_cache="none", **options)
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    return prepare(dataset, make_small_tokenizer(), settings, pack=pack, formatting_func=formatting_func)


def children() -> list[psutil.Process]:
    return workers_of(psutil.Process())


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Its processes, without the one that `multiprocessing` keeps to remove what a killed process leaves."""
    return [child for child in process.children(recursive=True) if "--multiprocessing-fork" in child.cmdline()]


def weighted(number: int) -> dict[str, Any]:
    return {**ROWS[number], "weight": 0.5 if number == 333 else 1.0}


TOKENIZED = [{"input_ids": [1 + n % 5, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [1, 2]} for n in range(450)]


@pytest.mark.parametrize(
    ("rows", "options", "processes"),
    [
        (ROWS, {"packing": True, "shuffle_dataset": True, "max_length": 90}, (3,)),
        pytest.param(ROWS, {"assistant_only_loss": True, "max_length": 80}, (2,), marks=pytest.mark.slow),
        ([weighted(number) for number in range(450)], {"max_length": None}, (2,)),
        pytest.param(TOKENIZED, {}, (2,), marks=pytest.mark.slow),
    ],
    ids=["packed and shuffled", "answers, cut", "weighted", "tokenized blocks"],
)
def test_tables_are_bit_identical_for_one_two_and_three_processes(
    rows: Any, options: dict[str, Any], processes: tuple[int, ...]
) -> None:
    one, *others = (ready(rows, num_proc, **options) for num_proc in (1, *processes))
    for other in others:
        assert other.dataset.data.table.equals(one.dataset.data.table)
        assert other.dataset._fingerprint == one.dataset._fingerprint
        assert other.summary == one.summary
        assert [other.places.where(n) for n in range(len(one.dataset))] == [
            one.places.where(n) for n in range(len(one.dataset))
        ]
    assert not children()


def test_bad_rows_of_any_process_are_in_one_error_with_their_places() -> None:
    rows = [*ROWS[:400], {"messages": [{"role": "robot", "content": "Beep"}]}, *ROWS[401:]]
    rows[20] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}
    messages = []
    for num_proc in (1, 2):
        with pytest.raises(DataError, match=r"2 of 450 rows") as caught:
            ready(rows, num_proc)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "unknown role (train data, row 400)" in messages[1]
    assert "empty assistant message (train data, row 20)" in messages[1]
    assert not children()


def test_skipped_rows_are_counted_over_all_processes() -> None:
    rows = [dict(row) for row in ROWS]
    for number in (3, 120, 449):
        rows[number] = {"messages": [{"role": "robot", "content": "Beep"}]}
    one, two = (ready(rows, num_proc, bad_rows="skip") for num_proc in (1, 2))
    assert two.summary == one.summary
    assert two.summary.num_skipped_rows == 3
    assert two.dataset.data.table.equals(one.dataset.data.table)


def test_a_function_of_the_users_stays_in_this_process_and_this_is_said() -> None:
    prepared = ready(ROWS, 2, formatting_func=lambda row: row["messages"][1]["content"])
    assert any(
        "starts no processes: formatting_func exists only in this one" in note for note in prepared.summary.notes
    )


def parts_of(rows: list[dict[str, Any]], num_processes: int) -> Any:
    dataset, tokenizer = Dataset.from_list(rows), make_small_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    order = workers.work_order(Request(dataset, tokenizer, Reading(RowFormat.MESSAGES, "messages"), DataSettings()))
    return workers.encode_in_processes(dataset, order, num_processes)


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    running = parts_of(ROWS, 2)
    next(running)
    for child in children():
        child.send_signal(signal.SIGKILL)
    with pytest.raises(DataError, match=r"was ended by the signal SIGKILL. Perhaps memory ran out.*dataset_num_proc"):
        list(running)
    assert not children()


def test_who_stops_early_leaves_no_process() -> None:
    running = parts_of(ROWS, 2)
    next(running)
    assert len(children()) == 2
    running.close()
    assert not children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_worker_whose_tokenizer_differs_is_a_defect_that_is_told_with_what_happened_there() -> None:
    dataset = Dataset.from_list(ROWS)
    reading = Reading(RowFormat.MESSAGES, "messages")
    order = workers.work_order(Request(dataset, make_small_tokenizer(), reading, DataSettings()))
    order = replace(order, state={**order.state, "backend": "another"})
    with pytest.raises(RuntimeError, match=r"(?s)failed.*Traceback.*its tokenizer.json differs in backend"):
        list(workers.encode_in_processes(dataset, order, 1))
    assert not children()


def test_a_process_that_is_killed_while_it_answers_leaves_nobody_waiting() -> None:
    running = parts_of(ROWS * 8, 2)
    next(running)
    threading.Timer(0.02, children()[1].kill).start()
    with pytest.raises(DataError, match="SIGKILL"):
        list(running)
    assert not children()


def test_the_other_processes_import_no_torch_and_nothing_that_starts_threads_before_they_are_told() -> None:
    threads = "import sys, sartor.data.encoding.workers; print('numpy' in sys.modules); "
    torch = "import sartor.data.encoding.encoder, transformers, datasets; transformers.PreTrainedTokenizerFast; "
    command = [sys.executable, "-c", threads + torch + "print('torch' in sys.modules)"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "False\nFalse\n"


def test_errors_of_other_processes_are_those_of_this_one() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SartorError)]
    several = errors.ConfigurationError(["one", "two"])
    here, there = Pipe()
    with here, there:
        for error in (several, *(kind("it is odd") for kind in kinds)):
            here.send(error)
            found = there.recv()
            assert (type(found), str(found)) == (type(error), str(error))
            assert vars(found) == vars(error)
    assert len(kinds) > 8


SCRIPT = """
import sys
from datasets import Dataset
from sartor.data.encoding.encode import prepare
from sartor.records import DataSettings
sys.path.insert(0, sys.argv[1])
from tests.data.conftest import make_small_tokenizer
print("the script runs", flush=True)
rows = Dataset.from_dict({"text": [f"It smells of rubber boots {n}" for n in range(600)]})
prepare(rows, make_small_tokenizer(), DataSettings(num_proc=2, data_cache="none"))
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "no_guard.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "the script runs\n"


def test_a_daemon_starts_no_processes_and_this_is_said() -> None:
    process = current_process()
    assert process.daemon is False
    process.daemon = True
    try:
        prepared = ready(ROWS, 2)
    finally:
        process.daemon = False
    assert any("starts no processes: this one is a daemon" in note for note in prepared.summary.notes)


INTERRUPTED = """
import sys
from datasets import Dataset
from sartor.data.encoding.encode import prepare
from sartor.records import DataSettings
sys.path.insert(0, sys.argv[1])
from tests.data.conftest import make_small_tokenizer
text = "It smells of rubber boots. " * 200
rows = Dataset.from_dict({"text": [f"{n} {text}" for n in range(6_000)]})
print("ready", flush=True)
prepare(rows, make_small_tokenizer(), DataSettings(num_proc=2, data_cache="none"))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_when_this_process_is_stopped_the_others_end(how: signal.Signals) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", INTERRUPTED, root]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(started) < 2 and time.monotonic() < end:
        started = workers_of(psutil.Process(process.pid))
        time.sleep(0.02)
    assert len(started) == 2
    time.sleep(0.5)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does with Ctrl-C: all processes get it
    else:
        process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count("KeyboardInterrupt") == (how is signal.SIGINT)
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    assert len(gone) == 2
