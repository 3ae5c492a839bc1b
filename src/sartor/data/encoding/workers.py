"""Encodes a data set in several processes.

What comes in: a data set and what an `Encoder` is made of.  What goes out: its `Part`s, in the order of the rows.  What
it keeps true: parts, problems and counts are those of one process; when this process ends, however it ends, the others
end too; one that is killed is an error that says so.

Each process is one of `multiprocessing`, a fresh interpreter that imports neither torch nor the user's script: a fork
would copy locks of torch's and the tokenizer's threads in whatever state they are.  A thread of a pool gives it batches
and waits for its answers.  The pools of processes in the standard library are not used, because their processes share
one pipe: where one of them is killed while it writes, `concurrent.futures` waits for ever, and `multiprocessing.Pool`
waits whenever one is killed.  Here each has a pipe of its own, which ends with it.

This module is imported in the other processes before they are told to use one thread each, so it imports nothing that
starts threads.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sartor.errors import DataError, SartorError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import datasets

    from sartor.data.encoding.parts import Part
    from sartor.data.encoding.request import Request
    from sartor.data.rows.formats import Reading
    from sartor.records import DataSettings

BATCHES_PER_WORKER = 2
"""Batches that are under way for each process: one that it encodes, and one that waits or has been encoded."""
_START = threading.Lock()


class WorkerFailed(DataError):
    """A process that encodes ended before its work."""


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What another process makes its `Encoder` of."""

    backend: str
    """The tokenizer as tokenizer.json has it."""
    tokenizer_options: Mapping[str, Any]
    state: Mapping[str, Any]
    """`keys.tokenizer_state` of the tokenizer here, which that of the other process must equal."""
    reading: Reading
    settings: DataSettings
    end_tokens: Sequence[str]
    name: str
    features: Mapping[str, Any]
    """Of the rows, as `datasets` writes them."""


def work_order(request: Request) -> WorkOrder:
    """What other processes need to encode these rows as they would be encoded here.

    Raises:
        Unkeyed: the tokenizer is not one that can be made again from tokenizer.json.
    """
    from sartor.data.encoding.keys import tokenizer_state

    tokenizer = request.tokenizer
    options = {
        **{key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
        "extra_special_tokens": [str(token) for token in tokenizer.extra_special_tokens],
        "chat_template": tokenizer.chat_template,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    return WorkOrder(
        backend=tokenizer.backend_tokenizer.to_str(),
        tokenizer_options=options,
        state=tokenizer_state(tokenizer),
        reading=request.reading,
        settings=request.settings,
        end_tokens=request.end_tokens,
        name=request.name,
        features=request.dataset.features.to_dict(),
    )


def encode_in_processes(dataset: datasets.Dataset, order: WorkOrder, num_processes: int) -> Generator[Part]:
    """The parts of a data set, in order; closed before its end, it ends the processes.

    Raises:
        WorkerFailed: a process has ended before its work.
    """
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def encode(first: int, table: bytes) -> Part:
        worker = idle.get()
        try:
            return worker.encode(first, table)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(num_processes, thread_name_prefix="encode")
    waiting: deque[Future[Part]] = deque()
    try:
        for _ in range(num_processes):
            workers.append(_Worker(order))
            idle.put(workers[-1])
        for first, table in _tables(dataset):
            waiting.append(pool.submit(encode, first, table))
            if len(waiting) >= BATCHES_PER_WORKER * num_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in workers:
            worker.kill()
        pool.shutdown(cancel_futures=True)


def _tables(dataset: datasets.Dataset) -> Iterator[tuple[int, bytes]]:
    """Batches of rows as Arrow has them, each with the number of its first row."""
    import pyarrow

    from sartor.data.encoding.parts import ROWS_PER_BATCH

    first = 0
    for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield first, sink.getvalue().to_pybytes()
        first += len(table)


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self, order: WorkOrder) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_answer_batches, args=(other_end,), daemon=True)
        with other_end, _apart():
            self._process.start()
        self._order: WorkOrder | None = order

    def encode(self, first: int, table: bytes) -> Part:
        """One batch, whose first row has this number.

        Raises:
            WorkerFailed: the process has ended.
            SartorError: what the encoder raised there.
            RuntimeError: a defect, with what happened there.
        """
        try:
            if self._order is not None:
                self._pipe.send(self._order)
                self._order = None
            self._pipe.send((first, table))
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerFailed(self._last_words()) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _last_words(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            how = f"was ended by the signal {signal.Signals(-code).name}"
            advice = "Perhaps memory ran out" if -code == signal.SIGKILL else "Perhaps somebody stopped it"
        else:
            how, advice = f"ended with exit code {code}", "What it said is above"
        return (
            f"A process that prepares the data (number {self._process.pid}) {how}. {advice}. Nothing is kept of what "
            "was prepared; use fewer processes (dataset_num_proc), or dataset_num_proc=1 for none."
        )

    def kill(self) -> None:
        """End the process now; who waits for its answer is told that it has ended."""
        self._process.kill()
        self._process.join()


@contextmanager
def _apart() -> Iterator[None]:
    """A process that is started meanwhile knows of no script, and Ctrl-C does not reach it: this one ends it.

    `multiprocessing` would run the script of this process again in the new one, and a script that does not look at
    `__name__` would train twice.  It finds it in `__main__`, which is another, empty module for these milliseconds.
    """
    with _START:
        resource_tracker.ensure_running()  # started later, it would let Ctrl-C through again
        script, blocked = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _answer_batches(pipe: Connection) -> None:
    """What the other process does: get a `WorkOrder`, and answer batches until the first process closes the pipe."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")  # the processes are what uses the cores
    encode: Callable[[int, bytes], Part] | None = None
    with suppress(EOFError, ConnectionError):
        order = pipe.recv()
        while True:
            first, table = pipe.recv()
            answer: Part | Exception
            try:
                if encode is None:
                    encode = _encoder_of(order)
                    gc.freeze()  # what is there stays, and need not be walked through again and again
                answer = encode(first, table)
            except SartorError as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"a process that prepares the data failed:\n{traceback.format_exc()}")
            pipe.send(answer)


def _encoder_of(order: WorkOrder) -> Callable[[int, bytes], Part]:
    """A function that encodes a batch of rows, given the number of its first row.

    Raises:
        RuntimeError: the tokenizer that was made is not the one that was described.
    """
    import datasets
    import pyarrow
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from sartor.data.encoding.encoder import Encoder
    from sartor.data.encoding.keys import tokenizer_state
    from sartor.data.encoding.parts import encoding_part
    from sartor.data.reading.tables import places_of, rows_of
    from sartor.data.tokens.tokenizing import run

    backend = Tokenizer.from_str(order.backend)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **order.tokenizer_options)
    state = tokenizer_state(tokenizer)
    if state != order.state:
        differing = ", ".join(key for key in state if state[key] != order.state[key])
        raise RuntimeError(f"the tokenizer made of its tokenizer.json differs in {differing}")
    encoder = Encoder(tokenizer, order.reading, order.settings, order.end_tokens)
    features = datasets.Features.from_dict(order.features)

    def encode(first: int, table: bytes) -> Part:
        arrow = datasets.table.InMemoryTable(pyarrow.ipc.open_stream(table).read_all())
        rows = rows_of(datasets.Dataset(arrow, info=datasets.DatasetInfo(features=features))[:])
        places = places_of(rows, first, order.name)
        return run(encoding_part(encoder, rows, places), encoder.tokenize)

    return encode
