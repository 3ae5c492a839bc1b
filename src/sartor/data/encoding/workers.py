"""Encodes a data set in several processes.

What comes in: a data set and what an `Encoder` is made of.  What goes out: its `Part`s, in the order of the rows.  What
it keeps true: parts, problems and counts are those of one process; when this process ends, however it ends, the others
end too; one that is killed is an error that says so.

Each process is a fresh interpreter that runs `sartor.data.encoding.worker`: a fork would copy locks of torch's and the
tokenizer's threads in whatever state they are, and multiprocessing's spawn would run the user's script again.  It
imports neither torch nor the script, and is there after about a second.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.data.encoding.parts import ROWS_PER_BATCH, Part
from sartor.data.encoding.wire import Answer, WorkOrder, answer_of, receive, send
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading
from sartor.errors import DataError
from sartor.records import DataSettings

if TYPE_CHECKING:
    import datasets

BATCHES_PER_WORKER = 2
"""Batches that are under way for each process: one that it encodes, and one that waits or has been encoded."""


def work_order(
    dataset: datasets.Dataset,
    tokenizer: Any,
    reading: Reading,
    settings: DataSettings,
    end_tokens: Sequence[str],
    name: str,
) -> WorkOrder:
    """What workers need to encode these rows as they would be encoded here.

    Raises:
        Unkeyed: the tokenizer is not one that can be made again from tokenizer.json.
    """
    from sartor.data.encoding.keys import tokenizer_state

    state = tokenizer_state(tokenizer)
    options = {
        **{key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
        "extra_special_tokens": [str(token) for token in tokenizer.extra_special_tokens],
        "chat_template": tokenizer.chat_template,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    features = dataset.features.to_dict()
    backend = tokenizer.backend_tokenizer.to_str()
    return WorkOrder(backend, options, state, reading, settings, tuple(end_tokens), name, features)


class WorkerFailed(DataError):
    """A process that encodes could not be started, or ended before its work."""


class _Worker:
    """One process, and its pipes."""

    def __init__(self, order: WorkOrder) -> None:
        source = str(Path(__file__).parents[3])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
            "TOKENIZERS_PARALLELISM": "false",  # the processes are what uses the cores
            "OMP_NUM_THREADS": "1",
        }
        # A session of its own, so that Ctrl-C reaches this process alone, which then ends the others.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sartor.data.encoding.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._order: WorkOrder | None = order

    @property
    def pid(self) -> int:
        return self._process.pid

    def encode(self, first: int, table: bytes) -> Answer:
        """One batch, whose first row has this number.

        Raises:
            WorkerFailed: the process has ended.
            SartorError: what the encoder raised there.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._order is not None:
                send(self._process.stdin, self._order.to_json())
                self._order = None
            send(self._process.stdin, {"first": first}, table)
            head, content = receive(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise WorkerFailed(self._last_words()) from error
        return answer_of(head, content)

    def _last_words(self) -> str:
        code = self._process.wait()
        if code < 0:
            how = f"was ended by the signal {signal.Signals(-code).name}"
            advice = "Perhaps memory ran out" if -code == signal.SIGKILL else "Perhaps somebody stopped it"
        else:
            how, advice = f"ended with exit code {code}", "What it said is above"
        return (
            f"A process that prepares the data (number {self.pid}) {how}. {advice}. Nothing is kept of what was "
            "prepared; use fewer processes (dataset_num_proc), or dataset_num_proc=1 for none."
        )

    def close(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def encode_in_processes(
    dataset: datasets.Dataset, order: WorkOrder, num_processes: int, problems: ProblemLog, tally: Counter[str]
) -> Generator[Part]:
    """The parts of a data set, in order; closed before its end, it ends the processes.

    Args:
        problems: where what is wrong with rows is noted.
        tally: where counts are added.

    Raises:
        WorkerFailed: a process has ended before its work.
    """
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def encode(first: int, table: bytes) -> Answer:
        worker = idle.get()
        try:
            return worker.encode(first, table)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(num_processes, thread_name_prefix="encode")
    waiting: deque[Future[Answer]] = deque()
    try:
        for _ in range(num_processes):
            workers.append(_Worker(order))
            idle.put(workers[-1])
        for first, table in _tables(dataset):
            waiting.append(pool.submit(encode, first, table))
            if len(waiting) >= BATCHES_PER_WORKER * num_processes:
                yield _noted(waiting.popleft().result(), problems, tally)
        while waiting:
            yield _noted(waiting.popleft().result(), problems, tally)
    finally:
        for worker in workers:
            worker.close()
        pool.shutdown(cancel_futures=True)


def _noted(answer: Answer, problems: ProblemLog, tally: Counter[str]) -> Part:
    problems.update(answer.problems)
    tally.update(answer.tally)
    return answer.part


def _tables(dataset: datasets.Dataset) -> Iterator[tuple[int, bytes]]:
    """Batches of rows as Arrow has them, each with the number of its first row."""
    import pyarrow

    first = 0
    for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield first, sink.getvalue().to_pybytes()
        first += len(table)
