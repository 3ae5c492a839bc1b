"""A process that encodes batches of rows; see `workers`, which starts it as `python -m sartor.data.encoding.worker`.

What comes in, through standard input: a `WorkOrder`, then batches of rows.  What goes out, through standard output: an
`Answer` for each.  What it keeps true: it ends when its input does, so that it outlives nobody; what is printed here
goes to standard error.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable

from sartor.data.encoding.wire import Answer, WorkOrder, answer_message, error_message, receive, send


def main() -> None:
    """Answer until the input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into the answers
    encode: Callable[[int, bytes], Answer] | None = None
    try:
        order, _ = receive(requests)
        while True:
            head, table = receive(requests)
            try:
                if encode is None:
                    encode = encoder_of(WorkOrder.from_json(order))
                    gc.freeze()  # what is there stays, and need not be walked through again and again
                message, content = answer_message(encode(head["first"], table))
            except Exception as error:
                message, content = error_message(error, traceback.format_exc()), b""
            send(answers, message, content)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the other side has ended, and nobody waits for what is left here


def encoder_of(order: WorkOrder) -> Callable[[int, bytes], Answer]:
    """A function that encodes a batch of rows, given the number of its first row.

    Raises:
        RuntimeError: the tokenizer that was made is not the one that was described.
    """
    import datasets
    import pyarrow
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from sartor.data.encoding.keys import tokenizer_state
    from sartor.data.encoding.parts import encoding_part, places_of, rows_of
    from sartor.data.encoding.tokenizing import run
    from sartor.data.encoding.tokens import Encoder
    from sartor.data.reading.problems import ProblemLog

    backend = Tokenizer.from_str(order.backend)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **order.tokenizer_options)
    state = tokenizer_state(tokenizer)
    if state != order.state:
        differing = ", ".join(key for key in state if state[key] != order.state[key])
        raise RuntimeError(f"the tokenizer made of its tokenizer.json differs in {differing}")
    encoder = Encoder(tokenizer, order.reading, order.settings, order.end_tokens)
    features = datasets.Features.from_dict(order.features)

    def encode(first: int, table: bytes) -> Answer:
        arrow = datasets.table.InMemoryTable(pyarrow.ipc.open_stream(table).read_all())
        rows = rows_of(datasets.Dataset(arrow, info=datasets.DatasetInfo(features=features))[:])
        places = places_of(rows, first, order.name)
        part, problems = run(encoding_part(encoder, rows, places, ProblemLog()), encoder.tokenize)
        tally = Counter(encoder.tally)
        encoder.tally.clear()
        return Answer(part, problems, tally)

    return encode


if __name__ == "__main__":
    main()
