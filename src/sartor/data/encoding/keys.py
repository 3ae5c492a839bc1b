"""The key of prepared data: a digest of everything that it depends on.

What comes in: a data set, a tokenizer, settings, functions.  What goes out: a key, the same for the same and another
for anything else; or None, where something cannot be named by its content, and the reason.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sartor.data.encoding.request import Request
from sartor.data.tokens.tokenizing import BatchTokenizer, is_stock

if TYPE_CHECKING:
    import datasets

NOT_IN_THE_KEY = ("num_proc", "data_cache")
"""Settings that change how data is prepared, but not what it becomes."""
_ROWS_AT_A_TIME = 10_000


class Unkeyed(Exception):
    """There is no key; says why."""


def key_of(request: Request) -> str:
    """The key of a data set that is prepared in this way.

    Raises:
        Unkeyed: the tokenizer or the function cannot be named by its content.
    """
    formatting_func, pack = request.reading.formatting_func, request.pack
    ingredients = {
        "rows": rows_digest(request.dataset),
        "tokenizer": tokenizer_state(request.tokenizer),
        "settings": {key: value for key, value in asdict(request.settings).items() if key not in NOT_IN_THE_KEY},
        "name": request.name,
        "notes": request.reading.notes,  # of what was found out before: that the tokenizer had no template, say
        "end tokens": request.end_tokens,
        "function": None if formatting_func is None else function_digest(formatting_func),
        "versions": {package: version(package) for package in ("transformers", "tokenizers", "jinja2", "datasets")},
        "sartor": [_sources_digest(), None if pack is None else _file_digest(inspect.getsourcefile(pack))],
    }
    if "strftime_now" in json.dumps(ingredients["tokenizer"]["chat_template"]):  # type: ignore[index,call-overload]
        ingredients["date"] = date.today().isoformat()
    return xxhash.xxh3_128_hexdigest(json.dumps(ingredients, sort_keys=True).encode())


def rows_digest(dataset: datasets.Dataset) -> str:
    """A digest of columns, types and values, in order; at about a gigabyte a second."""
    import pyarrow

    digest = xxhash.xxh3_128(json.dumps(dataset.features.to_dict(), sort_keys=True).encode())

    class Sink:
        """Takes Arrow's bytes as a file would."""

        closed = False

        def write(self, data: Any) -> int:
            digest.update(memoryview(data))
            return len(data)

        def flush(self) -> None:
            """Nothing waits."""

    for table in dataset.with_format("arrow").iter(_ROWS_AT_A_TIME):
        plain = table.replace_schema_metadata(None).combine_chunks()
        with pyarrow.ipc.new_stream(pyarrow.PythonFile(Sink(), "w"), plain.schema) as writer:
            writer.write_table(plain)
    return digest.hexdigest()


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Everything that tokens and rendered texts depend on.

    Raises:
        Unkeyed: it is not only what its tokenizer.json says.
    """
    if not is_stock(tokenizer):
        raise Unkeyed(f"the tokenizer ({type(tokenizer).__name__}) is not one that tokenizer.json describes")
    BatchTokenizer(tokenizer).reset()
    return {
        "backend": xxhash.xxh3_128_hexdigest(tokenizer.backend_tokenizer.to_str().encode()),
        "special_tokens_map": {key: _text(value) for key, value in tokenizer.special_tokens_map.items()},
        "all_special_tokens": [str(token) for token in tokenizer.all_special_tokens],
        "chat_template": tokenizer.chat_template,
        "split_special_tokens": bool(tokenizer.split_special_tokens),
    }


def _text(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def function_digest(function: Callable[..., Any]) -> list[str]:
    """A digest of a function of the user's: what it is made of, as `datasets` sees it, and the text of its module.

    Raises:
        Unkeyed: it holds what cannot be named.
    """
    from datasets.fingerprint import Hasher

    try:
        digest = Hasher.hash(function)
    except Exception as error:  # pickling raises what it likes
        raise Unkeyed(f"formatting_func cannot be named by its content ({type(error).__name__}: {error})") from error
    try:
        return [digest, _file_digest(inspect.getsourcefile(function))]
    except (TypeError, OSError):  # typed in by hand, or no plain function
        return [digest]


def _file_digest(path: str | None) -> str:
    return "" if path is None or not Path(path).is_file() else xxhash.xxh3_128_hexdigest(Path(path).read_bytes())


@cache
def _sources_digest() -> str:
    """A digest of the code that prepares, so that no version of it finds what another has made."""
    here = Path(__file__).parents[1]
    digest = xxhash.xxh3_128()
    for path in [here.parent / "records.py", *sorted(here.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
