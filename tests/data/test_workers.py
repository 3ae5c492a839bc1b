"""Several processes prepare what one prepares, tell what is wrong with rows as one does, and are gone afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import Dataset

from sartor.batching.packing import pack
from sartor.data.encoding import parts, workers
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.wire import Answer, answer_message, answer_of
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData, RowFormat
from tests.data.conftest import make_small_tokenizer


def conversation(number: int) -> dict[str, Any]:
    answer = "It smells of rubber boots. " * (1 + number % 7)
    return {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": answer}]}


ROWS = [conversation(number) for number in range(450)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_BATCH", 50)
    monkeypatch.setattr(workers, "ROWS_PER_BATCH", 50)
    monkeypatch.setattr("sartor.data.encoding.assemble.ROWS_PER_BATCH", 50)


def ready(rows: list[dict[str, Any]], num_proc: int, *, formatting_func: Any = None, **options: Any) -> PreparedData:
    settings = DataSettings(num_proc=num_proc, data_cache="none", **options)
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    return prepare(dataset, make_small_tokenizer(), settings, pack=pack, formatting_func=formatting_func)


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "sartor.data.encoding.worker" in child.cmdline()
    ]


def weighted(number: int) -> dict[str, Any]:
    return {**ROWS[number], "weight": 0.5 if number == 333 else 1.0}


TOKENIZED = [{"input_ids": [1 + n % 5, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [1, 2]} for n in range(450)]


@pytest.mark.parametrize(
    ("rows", "options", "processes"),
    [
        (ROWS, {"packing": True, "shuffle_dataset": True, "max_length": 90}, (2, 3)),
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
    order = workers.work_order(dataset, tokenizer, Reading(RowFormat.MESSAGES, "messages"), DataSettings(), (), "train")
    return workers.encode_in_processes(dataset, order, num_processes, ProblemLog(), Counter())


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
    order = workers.work_order(dataset, make_small_tokenizer(), reading, DataSettings(), (), "train")
    order = replace(order, state={**order.state, "backend": "another"})
    with pytest.raises(RuntimeError, match=r"(?s)failed.*Traceback.*its tokenizer.json differs in backend"):
        list(workers.encode_in_processes(dataset, order, 1, ProblemLog(), Counter()))
    assert not children()


def test_a_worker_imports_no_torch_and_ends_when_its_input_does() -> None:
    command = [sys.executable, "-c", "import sys; import sartor.data.encoding.worker as w; w.main(); print('never')"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True).stdout == b""
    probe = "import sys, sartor.data.encoding.worker, sartor.data.encoding.tokens, transformers, datasets; "
    probe += "transformers.PreTrainedTokenizerFast; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "False\n"


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
    command = [sys.executable, "-c", INTERRUPTED, root]  # no main guard: the script is not run again
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(started) < 2 and time.monotonic() < end:
        started = psutil.Process(process.pid).children()
        time.sleep(0.02)
    assert len(started) == 2
    time.sleep(0.5)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in said) == (how is signal.SIGINT)
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    assert len(gone) == 2


def test_messages_between_processes_lose_nothing() -> None:
    rows = [*TOKENIZED[:3], {"input_ids": [4], "labels": [4], "seq_lengths": [1]}]
    part = next(
        parts.encode_here(
            Dataset.from_list(rows),
            _encoder(RowFormat.TOKENIZED),
            ProblemLog(),
            name="train",
        )
    )
    problems = ProblemLog()
    problems.add("odd", "train data, row 1", "it is odd.", {"a": "ü"})
    head, content = answer_message(Answer(part, problems, Counter({"rows": 4})))
    again = answer_of(head, content)
    assert again.part.rows.to_lists() == part.rows.to_lists()
    assert [again.part.places.where(n) for n in range(4)] == [part.places.where(n) for n in range(4)]
    assert again.problems.tell("train", 4) == problems.tell("train", 4)
    assert again.tally == {"rows": 4}


def _encoder(kind: RowFormat) -> Any:
    from sartor.data.encoding.tokens import Encoder

    return Encoder(make_small_tokenizer(), Reading(kind, "input_ids"), DataSettings())
