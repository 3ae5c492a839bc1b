"""The sandbox that a template runs in so that its output can be traced: every operation on text keeps the tags.

It is Jinja's immutable sandbox, as transformers uses it, with transformers' own filters and globals.  Fail closed: a
filter, function or operator that is not known to keep tags has its result tagged as a whole, with its only source or
with `MIX`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sartor.data.templates.provenance.compiler import ShadowCodeGenerator
from sartor.data.templates.provenance.order import Progress
from sartor.data.templates.provenance.shadow import (
    OUTSIDE,
    Kind,
    Shadow,
    joined,
    message_of,
    sole_tag,
    sources_of,
    tag_of,
    tagged,
)

KEEPS_TAGS = frozenset(
    [
        "attr",
        "batch",
        "capitalize",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
        "string",
        "trim",
        "unique",
        "upper",
    ]
)
"""Filters that hand on what they get, or call methods of it that keep tags.  `indent`, `title` and others build their
result from plain strings in between, which would pass for text of the template's own: they must not stand here."""


_OF_DICTIONARIES = frozenset(dir(dict))


class Message(dict[str, Any]):
    """A message whose texts are tagged, and that knows its number."""

    # Underscored: a template reads `message.number` as a key, and must not find an attribute first.
    __slots__ = ("_number",)

    def __init__(self, fields: Mapping[str, Any], number: int) -> None:
        super().__init__(fields)
        self._number = number


class _GenerationScope(Extension):
    """`{% generation %}` as what it is to the text: a scope of its own names."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class ShadowEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates keep tags.  Holds the message being rendered, so it serves one rendering at a time."""

    code_generator_class = ShadowCodeGenerator
    intercepted_binops = frozenset(["%"])
    concat = staticmethod(joined)

    def __init__(self, like: jinja2.Environment) -> None:
        """With the filters, tests, globals and whitespace rules of another environment."""
        super().__init__(
            trim_blocks=like.trim_blocks,
            lstrip_blocks=like.lstrip_blocks,
            extensions=[_GenerationScope, loopcontrols],
            optimized=False,
        )
        self.at = OUTSIDE
        """The tag of text that the template itself writes now."""
        self.progress = Progress(0)
        self.globals.update(like.globals)
        self.tests.update(like.tests)
        self.filters = {name: self._tracing(name, function) for name, function in like.filters.items()}
        self.filters["join"] = self._join

    # --- called by the code that the template is compiled to

    def enter(self, value: Any, before: str) -> None:
        """A loop is at this value: a message, a dictionary that a template made of one, or something else."""
        if isinstance(value, Message):
            self.at = tag_of(value._number, Kind.LITERAL)
            return
        self.at = before
        if type(value) is dict and "role" in value:
            message = message_of(sole_tag(value))
            if message is not None:
                self.at = tag_of(message, Kind.LITERAL)

    def begin(self, loop: int, values: Callable[[], Sequence[Any]]) -> None:
        """The loop that writes the messages begins."""
        self.progress.begin(loop, values)

    def skips(self, value: Any) -> bool:
        """A turn of that loop begins with this value: whether it is skipped."""
        return self.progress.enter(value._number if isinstance(value, Message) else None)

    def shown(self, value: Any) -> Shadow:
        """What is written for a value: text of nobody else's is the template's own, at the current message."""
        if type(value) is str:
            return Shadow(value, self.at * len(value))
        text = value if isinstance(value, Shadow) else self._text(value)
        if not isinstance(text, Shadow):
            return Shadow(text, self.at * len(text))
        if self.at != OUTSIDE and OUTSIDE in text._tags:
            return Shadow(str.__str__(text), text._tags.replace(OUTSIDE, self.at))
        return text

    def kept(self, value: Any) -> Any:
        """What is assigned while at a message.  Plain text stays untagged: a name may be for another message."""
        return self.shown(value) if isinstance(value, Shadow) else value

    def texts_joined(self, values: Iterable[Any]) -> str:
        """`a ~ b`."""
        return joined(map(self._text, values))

    @staticmethod
    def _text(value: Any) -> str:
        return value if isinstance(value, str) else tagged(str(value), value)

    # --- called by Jinja

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`a.b`.  Of what templates ask most the sandbox's look at each value is spared: it is always the same."""
        if type(obj) is Message:
            if attribute in obj and attribute not in _OF_DICTIONARIES:
                return obj[attribute]
        elif isinstance(obj, Namespace | LoopContext) and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)

    def call(self, context: Any, obj: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """A function or method: those of plain strings (`', '.join`) are replaced by those that keep tags."""
        owner = obj.__self__ if isinstance(obj, BuiltinMethodType) else None
        if type(owner) is str:
            obj = getattr(Shadow(owner), obj.__name__)
        result = super().call(context, obj, *arguments, **keywords)
        if type(result) is not str:
            return result
        # `_loop_vars` and `_block_vars` are Jinja's own
        passed = [value for name, value in keywords.items() if not name.startswith("_")]
        return tagged(result, [arguments, passed])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`%`, which formats where the left side is text."""
        result = super().call_binop(context, operator, left, right)
        return tagged(result, [left, right]) if isinstance(result, str) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def traced(*arguments: Any, **keywords: Any) -> str:
            text = str.__str__(formatted(*arguments, **keywords))
            passed = [item for name, item in keywords.items() if not name.startswith("_")]
            return tagged(text, [value.__self__, arguments, passed])

        return traced

    # --- filters

    def _tracing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, with a result that is tagged."""
        keeps_tags = name in KEEPS_TAGS

        @wraps(function)  # copies Jinja's own marks too: whether it gets the context first
        def traced(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            if isinstance(result, str) and not (keeps_tags and isinstance(result, Shadow)):
                sources = [arguments, keywords]
                return tagged(str.__str__(result), sources) if sources_of(sources) else result
            return result

        return traced

    def _join(self, values: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
        """The filter `join`."""
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        return Shadow(separator, getattr(separator, "_tags", None)).join(map(self._text, values))
