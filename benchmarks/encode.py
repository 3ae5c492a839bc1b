"""Rows per second from a data set to tokens: the bare tokenizer, trl's preparation and Sartor's, cold and from its
cache; alternating, on the same rows.

    python -m benchmarks.encode
    python -m benchmarks.encode --data rows.jsonl --tokenizer tokenizer.json --rounds 5
    python -m benchmarks.encode --rows 1000000          # peak memory instead, of so many rows

Every measurement is a process of its own.  The variants take turns, round after round; what is printed, and appended to
benchmarks/encode.csv, are the 20th, 50th and 80th percentile over the rounds.  "tokenizer" is `encode_batch_fast`
alone, over all cores, on texts that are rendered already: nobody who uses it can be faster.  trl's time is that of
its `_prepare_dataset`.

With --rows the rows are repeated into a file that is mapped into memory, and prepared once.  Peak memory is that of
this process and its children, sampled: of memory of their own (anonymous), and resident in all, which also counts
pages of mapped files that the system takes back when it needs them.  More than BOUND_BYTES of the former is a
failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, records
from benchmarks.settings import CHATML, conversations, load_tokenizer

HERE = Path(__file__).resolve().parent
BOUND_BYTES = 1_000_000_000
"""Anonymous memory that preparing a million rows may take, libraries included."""
_ANSWER = "message.content + '<|im_end|>'"
MARKED = CHATML.replace(
    f"+ {_ANSWER}",
    f"}}}}{{% if message.role == 'assistant' %}}{{% generation %}}{{{{ {_ANSWER} }}}}{{% endgeneration %}}"
    f"{{% else %}}{{{{ {_ANSWER} }}}}{{% endif %}}{{{{ ''",
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "everything": (CHATML, {}),
    "marked answers": (MARKED, {"assistant_only_loss": True}),
    "proven answers": (CHATML, {"assistant_only_loss": True}),
}
"""Template and options."""
VARIANTS = ("tokenizer", "trl", "sartor", "sartor, cached")


def bare(tokenizer: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> float:
    """Seconds of the tokenizer alone."""
    texts = tokenizer.apply_chat_template([row["messages"] for row in rows], tokenize=False)
    start = time.perf_counter()
    tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - start


def trl(tokenizer: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> float:
    """Seconds of trl's preparation."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    seconds: list[float] = []

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = super()._prepare_dataset(*arguments, **keywords)
            seconds.append(time.perf_counter() - start)
            return result

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none", **options)
        Timed(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return sum(seconds)


def sartor(tokenizer: Any, rows: list[dict[str, Any]], options: dict[str, Any], *, cached: bool = False) -> float:
    """Seconds of Sartor's preparation: into an empty cache, or out of it."""
    from datasets import Dataset

    from sartor.batching.packing import pack
    from sartor.data.encoding.encode import prepare
    from sartor.records import DataSettings

    dataset = Dataset.from_list(rows)
    with tempfile.TemporaryDirectory() as folder:
        settings = DataSettings(data_cache=folder, **options)
        if cached:
            prepare(dataset, tokenizer, settings, pack=pack)
        start = time.perf_counter()
        prepare(dataset, tokenizer, settings, pack=pack)
        return time.perf_counter() - start


MEASURES: dict[str, Callable[..., float]] = {"tokenizer": bare, "trl": trl, "sartor": sartor}


def worker(arguments: argparse.Namespace) -> None:
    """One measurement in this process; prints a line of JSON."""
    template, options = CASES[arguments.case]
    tokenizer = load_tokenizer(arguments.tokenizer)
    tokenizer.chat_template = template
    rows = conversations(arguments.data)
    name, _, how = arguments.worker.partition(", ")
    seconds = MEASURES[name](tokenizer, rows, options, **({"cached": True} if how else {}))
    print(json.dumps({"rows": len(rows), "seconds": seconds}))


def memory_worker(arguments: argparse.Namespace) -> None:
    """Prepare many rows once, and watch memory; prints a line of JSON."""
    import datasets
    import pyarrow

    from sartor.batching.packing import pack
    from sartor.data.encoding.encode import prepare
    from sartor.records import DataSettings

    tokenizer = load_tokenizer(arguments.tokenizer)
    table = pyarrow.table({"messages": [row["messages"] for row in conversations(arguments.data)]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            for first in range(0, arguments.rows, len(table)):
                writer.write_table(table[: arguments.rows - first])
        dataset = datasets.Dataset.from_file(str(path))
        settings = DataSettings(
            data_cache=str(Path(folder) / "cache"), num_proc=arguments.num_proc, packing=True, shuffle_dataset=True
        )
        with TreeMemory() as memory:
            start = time.perf_counter()
            prepared = prepare(dataset, tokenizer, settings, pack=pack)
            seconds = time.perf_counter() - start
        result = {
            "rows": len(dataset),
            "tokens": prepared.summary.num_tokens,
            "seconds": seconds,
            "peak_anonymous_bytes": memory.anonymous_bytes,
            "peak_resident_bytes": memory.resident_bytes,
        }
    print(json.dumps(result))


class TreeMemory:
    """Peak memory of this process and its children together, sampled (Linux)."""

    def __init__(self, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.anonymous_bytes = 0
        self.resident_bytes = 0

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        here = psutil.Process()
        while not self._is_over.wait(self._every_s):
            found = [_memory_of(process.pid) for process in (here, *here.children(recursive=True))]
            self.anonymous_bytes = max(self.anonymous_bytes, sum(anonymous for anonymous, _ in found))
            self.resident_bytes = max(self.resident_bytes, sum(resident for _, resident in found))


def _memory_of(pid: int) -> tuple[int, int]:
    """Anonymous and resident bytes of a process; none of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmRSS"))
    }
    return values.get("RssAnon", 0), values.get("VmRSS", 0)


def in_new_process(arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a worker prints."""
    command = [sys.executable, "-m", "benchmarks.encode", *more]
    for option in ("data", "tokenizer"):
        if getattr(arguments, option):
            command += [f"--{option}", getattr(arguments, option)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(more)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def row_of(case: str, variant: str, results: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of the CSV."""
    p20, p50, p80 = records.percentiles([result["rows"] / result["seconds"] for result in results])
    return {
        "case": case,
        "variant": variant,
        "data": Path(arguments.data).name if arguments.data else "embedded",
        "tokenizer": Path(arguments.tokenizer).name if arguments.tokenizer else "embedded",
        "rows": results[0]["rows"],
        "rounds": len(results),
        "processes": arguments.num_proc or "",
        "rows_per_second_p20": round(p20, 1),
        "rows_per_second_p50": round(p50, 1),
        "rows_per_second_p80": round(p80, 1),
        "peak_anonymous_bytes": results[0].get("peak_anonymous_bytes", ""),
        "peak_resident_bytes": results[0].get("peak_resident_bytes", ""),
    }


def measure_memory(arguments: argparse.Namespace) -> int:
    """Peak memory of many rows; 1 where it is over the bound."""
    more = ["--num_proc", str(arguments.num_proc)] if arguments.num_proc else []
    result = in_new_process(arguments, "--worker", "memory", "--rows", str(arguments.rows), *more)
    records.append(arguments.csv, [row_of("memory, packed and shuffled", "sartor", [result], arguments)])
    is_over = result["peak_anonymous_bytes"] > BOUND_BYTES
    print(
        f"{result['rows']:,} rows, {result['tokens']:,} tokens in {result['seconds']:.0f} s: at most "
        f"{result['peak_anonymous_bytes'] / 1e9:.2f} GB of memory of its own ({'OVER' if is_over else 'within'} the "
        f"bound of {BOUND_BYTES / 1e9:.2f} GB), {result['peak_resident_bytes'] / 1e9:.2f} GB resident"
    )
    return int(is_over)


def main() -> int:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSONL rows with question, reasoning and answer (default: the embedded ones)")
    parser.add_argument("--tokenizer", help="a tokenizer.json or a folder (default: the embedded one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CASES), help="cases")
    parser.add_argument("--rows", type=int, help="measure peak memory, with so many rows")
    parser.add_argument("--num_proc", type=int, help="dataset_num_proc, where memory is measured")
    parser.add_argument("--csv", type=Path, default=HERE / "encode.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        memory_worker(arguments) if arguments.worker == "memory" else worker(arguments)
        return 0
    if arguments.rows:
        return measure_memory(arguments)
    print(machine.processor())
    for case in arguments.only or CASES:
        # trl refuses a template without marks that it has no other one for.
        variants = [name for name in VARIANTS if name != "trl" or case != "proven answers"]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for round_number in range(arguments.rounds):
            for name in variants:
                result = in_new_process(arguments, "--worker", name, "--case", case)
                found[name].append(result)
                speed = result["rows"] / result["seconds"]
                print(f"round {round_number + 1}: {case:16} {name:16} {speed:10.0f} rows/s", flush=True)
        report([row_of(case, name, results, arguments) for name, results in found.items()], arguments)
    return 0


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Percentiles, times as multiples of the bare tokenizer's, speeds as multiples of trl's; appended to the CSV."""
    records.append(arguments.csv, rows)
    speeds = {row["variant"]: row["rows_per_second_p50"] for row in rows}
    for name, speed in speeds.items():
        line = (
            f"{rows[0]['case']:16} {name:16} {speed:10.0f} rows/s  {speeds['tokenizer'] / speed:6.2f}x the time of the "
        )
        line += "tokenizer alone"
        print(line + (f"  {speed / speeds['trl']:6.2f}x trl's speed" if "trl" in speeds else ""))


if __name__ == "__main__":
    sys.exit(main())
