"""Prepares rows of known number: encodes, cuts, shuffles, packs and counts them, and keeps the result in the cache.

What comes in: rows and how they are read.  What goes out: `PreparedData`.  What it keeps true: results do not depend on
the number of processes, nor on whether they are kept in memory or in files; with files, of tokens only a few batches
are in memory at a time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sartor.data import entries
from sartor.data.encoding import cache, store
from sartor.data.encoding.counts import Counts
from sartor.data.encoding.encoder import Encoder
from sartor.data.encoding.keys import Unkeyed, key_of
from sartor.data.encoding.parts import ROWS_PER_BATCH, Part, encode_here
from sartor.data.encoding.request import Request
from sartor.data.encoding.workers import encode_in_processes, work_order
from sartor.data.entries import folder_of
from sartor.data.reading.places import Places
from sartor.records import Packing, PreparedData

if TYPE_CHECKING:
    pass

CACHED_FROM_BYTES = 1 << 16
"""Rows of less are prepared faster than they are found."""
CORES_IN_PROCESS = 4
"""So many cores are kept busy by the tokenizer's threads while one of them runs Python."""
ROWS_PER_PROCESS = 10_000
"""Fewer are encoded before another process is there."""


def prepare_rows(request: Request, encoder: Encoder) -> PreparedData:
    """The data, from the cache or made now.

    Raises:
        DataError: rows that cannot be used, or nothing is left to train.
    """
    used = request.dataset.remove_columns(list(request.reading.unused_columns))
    request = replace(request, dataset=used)

    def make(folder: Path | None) -> PreparedData:
        return _made(request, encoder, folder)

    folder = folder_of(request.settings.data_cache)
    is_large = used.data.nbytes >= entries.LARGE_BYTES
    if folder is None or used.data.nbytes < CACHED_FROM_BYTES:
        return cache.not_kept(make, request.say, is_large=is_large)
    try:
        key = key_of(request)
    except Unkeyed as reason:
        request.say(f"The {request.name} data is not cached: {reason}.")
        return cache.not_kept(make, request.say, is_large=is_large)
    return cache.cached(key, folder, make, request.say, is_large=is_large)


def _made(request: Request, encoder: Encoder, folder: Path | None) -> PreparedData:
    """Encode everything, and write it in its final order: to a file of the folder, or in memory."""
    name, settings = request.name, request.settings
    tokens = store.MemoryStore() if folder is None else store.FileStore(folder)
    num_processes, process_notes = _num_processes(request)
    counts = Counts(name, request.reading)
    kept_places: list[Places] = []
    with closing(_parts(request, encoder, num_processes)) as parts:
        for part in parts:
            counts.note(part)
            if not counts.problems or settings.bad_rows == "skip":
                rows, places = counts.cut(part.rows, part.places, settings)
                tokens.append(rows)
                kept_places.append(places)
    if settings.bad_rows != "skip" or not counts.num_rows:
        counts.problems.raise_if_any(f"{name} data", len(request.dataset))
    counts.check(settings)
    places = Places.concatenate(kept_places)
    rows = tokens.rows()
    how = store.arrangement(rows.lengths, settings, request.pack)
    dataset = None
    if folder is None:
        dataset, written = store.dataset_in_memory(rows, how)
    else:
        written = store.write_file(rows, how, folder / cache.DATA)
    del rows
    tokens.remove()
    summary = counts.summary(encoder, how, written, num_rows=len(request.dataset), notes=process_notes)
    return PreparedData(dataset, summary, _arranged_places(places, how), digest=written.fingerprint)


def _arranged_places(places: Places, how: store.Arrangement) -> Places:
    if how is None:
        return places
    return places.packed(how) if isinstance(how, Packing) else places.take(how)


def _parts(request: Request, encoder: Encoder, num_processes: int) -> Generator[Part]:
    if num_processes == 1:
        return encode_here(request.dataset, encoder, name=request.name)
    return encode_in_processes(request.dataset, work_order(request), num_processes)


def _num_processes(request: Request) -> tuple[int, tuple[str, ...]]:
    """How many processes encode, 1 for this one alone; and what to say where the user asked for others."""
    asked = request.settings.num_proc
    num_batches = -(-len(request.dataset) // ROWS_PER_BATCH)
    reason = _why_not_elsewhere(request)
    if asked is None:
        num_cores = _num_cores()
        if reason or num_cores <= CORES_IN_PROCESS:
            return 1, ()
        return max(1, min(num_cores, len(request.dataset) // ROWS_PER_PROCESS)), ()
    if asked > 1 and reason:
        return 1, (f"dataset_num_proc starts no processes: {reason}; the tokenizer's own threads use the cores.",)
    return max(1, min(asked, num_batches)), ()


def _why_not_elsewhere(request: Request) -> str:
    """Why other processes cannot encode these rows; empty where they can."""
    from sartor.data.tokens.tokenizing import is_stock

    if request.reading.formatting_func is not None:
        return "formatting_func exists only in this one"
    if not is_stock(request.tokenizer):
        return f"the tokenizer ({type(request.tokenizer).__name__}) cannot be made again in another"
    if multiprocessing.current_process().daemon:
        return "this one is a daemon, which may have no others"
    return ""


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
