"""Secrets in settings and messages: whatever writes or prints them has them masked here first.

In: a text, or settings as JSON can hold them.  Out: the same, with `MASK` in the place of each secret.  A secret is
known by its name (`hub_token`, `"api_key": ...`, `HF_TOKEN=...`), by its place in an address
(`https://user:password@host`), or by its form (`hf_...`).  What it keeps true: what is called `eos_token`,
`num_key_value_heads` and the like is none; masking twice changes nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MASK = "<masked>"

_ANYWHERE = ("password", "passwd", "passphrase", "secret", "credential", "apikey", "authtoken", "accesstoken")
"""Parts of a name, without its separators, that tell of a secret."""
_WORDS = frozenset({"auth", "oauth", "authorization", "bearer", "cookie"})
"""Words of a name that tell of a secret."""
_KINDS_OF_TOKENS = frozenset(
    [
        *("eos", "bos", "pad", "unk", "sep", "cls", "mask", "eot", "eom", "eoi", "boi", "eoa", "boa", "fim", "prefix"),
        *("suffix", "middle", "image", "video", "audio", "speech", "vision", "start", "end", "stop", "begin", "first"),
        *("last", "next", "new", "per", "each", "special", "extra", "added", "tool", "think", "fake", "empty", "space"),
    ]
)
"""Before `token` these words tell that it is a piece of text."""
_KINDS_OF_KEYS = frozenset(
    ["sort", "group", "primary", "foreign", "public", "text", "dataset", "column", "row", "label", "metric", "cache"]
)
"""Before `key` these words tell that it finds something."""
_CARRIERS = frozenset({"id", "path", "file", "value", "env", "name"})
"""After `access_key` or `token` these words tell of a secret's place, which is masked with it."""
_ORDINARY = frozenset(["", "0", "1", "value", "...", "true", "false", "yes", "no", "on", "off", "none", "null"])
"""Values that say whether there is a secret and not which, and those of examples."""

_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:/{1,3})[^\s/?#'\"<>]+@")
"""`https://user:password@host`, also with one stroke, as `Path` writes it."""
_BARE_ADDRESS = re.compile(r"(?<![\w.%+/:-])[\w.%+-]+:[^\s/@'\"<>]+@(?=[\w.-]+:\d)")
"""`user:password@host:port`, as proxies are written."""
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[a-z]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|(?<=\bBearer )[^\s'\",;<>]+|(?<=\bbearer )[^\s'\",;<>]{8,}"
)
_NAME = re.compile(
    r"(?P<quote>\\*['\"])?(?<![\w.-])-{0,2}(?P<name>[A-Za-z_][\w.-]*)(?(quote)(?P=quote))(?P<separator>\s*[:=]\s*)"
)
_VALUE = re.compile(
    r"(?:(?:Bearer|Basic)\s+)?(?:'(?:[^'\\]|\\.)*(?:'|$)|\"(?:[^\"\\]|\\.)*(?:\"|$)"
    r"|\\+(?P<quote>['\"]).*?(?:\\+(?P=quote)|$)|[^\s,;&(){}\[\]'\"\\]+)"
)


def is_secret(name: str) -> bool:
    """Whether what has this name is not to be shown.

    Example: `hub_token`, `WANDB_API_KEY`, `dbPassword` and `token` are; `eos_token`, `max_new_tokens`, `tokenizer`,
    `num_key_value_heads` and `GIT_AUTHOR_NAME` are not.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    parts = [part for part in re.split(r"[^a-z0-9]+", words) if part]
    if not parts:
        return False
    if any(part in "".join(parts) for part in _ANYWHERE) or not _WORDS.isdisjoint(parts):
        return True
    while len(parts) > 1 and parts[-1] in _CARRIERS:
        if parts[-1] == "id" and parts[-2] == "token":
            return False
        parts.pop()
    before = parts[-2] if len(parts) > 1 else ""
    return (
        (parts[-1] == "token" and before not in _KINDS_OF_TOKENS)
        or (parts[-1] == "tokens" and before in ("api", "access", "hub", "refresh"))
        or (parts[-1] == "key" and before not in _KINDS_OF_KEYS)
        or (parts[-1] == "keys" and before in ("api", "access", "private"))
        or (parts[-1] in ("pwd", "pass") and before in ("db", "user", "smtp", "http", "proxy", "login"))
    )


def masked(value: Any, is_secret: Callable[[str], bool] = is_secret) -> Any:
    """Settings without their secrets: mappings, lists and texts are made anew, everything else is what it was.

    Args:
        value: settings, nested as they may be.
        is_secret: says by the key of a mapping whether its value is one.

    Example: `{"dtype": "float32", "token": "abc", "url": "https://ada:abc@host/"}` becomes `{"dtype": "float32",
    "token": "<masked>", "url": "https://<masked>@host/"}`.
    """
    if isinstance(value, str):
        return masked_text(value) if type(value) is str else value
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(key, str) and is_secret(key) and _tells(part) else masked(part, is_secret)
            for key, part in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(masked(part, is_secret) for part in value)
    return value


def masked_text(text: str) -> str:
    """A message, or any other text, without the secrets that it shows."""
    text = _ADDRESS.sub(rf"\g<scheme>{MASK}@", text)
    text = _BARE_ADDRESS.sub(f"{MASK}@", text)
    text = _FORMS.sub(MASK, text)
    pieces, position, start = [], 0, 0
    while found := _NAME.search(text, start):
        start = found.end()
        value = _VALUE.match(text, start)
        if value is None or not _is_assigned(text, found, value[0]) or not is_secret(found["name"]):
            continue
        if _tells(value[0].strip("\\'\"")):
            pieces += [text[position:start], MASK]
            position = value.end()
        start = value.end()
    return "".join([*pieces, text[position:]])


def _is_assigned(text: str, name: re.Match[str], value: str) -> bool:
    """Whether this is a name with its value, and not a sentence with a colon in it."""
    begins_line = not text[text.rfind("\n", 0, name.start()) + 1 : name.start()].strip(" -")
    return "=" in name["separator"] or bool(name["quote"]) or value[0] in "\\'\"" or begins_line


def _tells(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and str(value).lower() not in _ORDINARY


def same_but_for_secrets(one: Any, other: Any) -> bool:
    """Whether two settings that were masked are equal, whatever stands in the place of their secrets.

    A secret that one of them has and the other lacks is no difference either: who asks for something is not what is
    asked for.
    """
    one, other = _without_secrets(one), _without_secrets(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_but_for_secrets(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(same_but_for_secrets(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return None if value == MASK else value.replace(f"{MASK}@", "")
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if part != MASK} or None
    return value or None if isinstance(value, dict | list) else value


@contextlib.contextmanager
def masked_errors() -> Iterator[None]:
    """Take the secrets out of an error that leaves this block, and out of the errors that it came from.

    A traceback prints all of them, and libraries repeat the address that they could not reach.
    """
    try:
        yield
    except BaseException as error:
        _mask_chain(error)
        raise


@contextlib.contextmanager
def masked_logs() -> Iterator[None]:
    """Within this block, mask what any library logs: huggingface_hub repeats the address that it asks again."""
    usual = logging.getLogRecordFactory()

    def make(*arguments: Any, **keywords: Any) -> logging.LogRecord:
        record = usual(*arguments, **keywords)
        text = record.getMessage()
        if (shown := masked_text(text)) != text:
            record.msg, record.args = shown, ()
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        logging.setLogRecordFactory(usual)


def _mask_chain(error: BaseException) -> None:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        _mask_arguments(error)
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            return
        _mask_arguments(cause)
        if masked_text(str(cause)) != str(cause):  # its text is made of something else
            error.__cause__, error.__suppress_context__ = None, True
            return
        error = cause


def _mask_arguments(error: BaseException) -> None:
    arguments = tuple(masked_text(one) if isinstance(one, str) else one for one in error.args)
    if arguments != error.args:
        error.args = arguments
