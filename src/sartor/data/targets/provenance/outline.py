"""What a template writes for every conversation of one shape: its own text, with slots for the messages' texts.

What comes in: a chat template and a conversation.  What goes out: an `Outline`, or `Unsettled` where the template does
more with texts than is followed.  What it keeps true: filled with the texts of any conversation of the same shape for
which all guards hold, an outline is what the template writes for it.

The template runs once with a `Blank` for each text (see `blanks`), in a sandbox where a function, filter or test that
is not known to leave blanks alone raises.  So its way through the template cannot depend on a text but by a guard.
Worked example, ChatML, of `Hi` and of every other question alike:

    <|im_start|>user⏎▢<|im_end|>⏎
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sartor.data.targets.provenance.blanks import Blank, Book, Piece, Slot, Unsettled, holds_blank, joined, pieces_of
from sartor.data.targets.provenance.compiler import ShadowCodeGenerator
from sartor.data.targets.provenance.render import IDENTIFIERS, Conversation, Renderer

_OF_LISTS = frozenset(
    [
        "count",
        "d",
        "default",
        "first",
        "items",
        "last",
        "length",
        "list",
        "map",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
    ]
)
"""Filters that look at nothing in a list but what other filters, tests and attributes look at."""
_ANSWERS = {"string": True, "sequence": True, "iterable": True, "defined": True} | dict.fromkeys(
    ["undefined", "none", "mapping", "number", "integer", "float", "boolean", "true", "false"], False
)
"""What tests say of any text."""
_EQUALS = frozenset(["eq", "==", "equalto"])
_DIFFERS = frozenset(["ne", "!="])
_NOT_REPEATABLE = ("random", "lipsum", "strftime_now")
"""What makes two renderings of the same conversation differ."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Text with slots: `literals[0]`, the first slot, `literals[1]`, and so on; one more literal than slots."""

    literals: tuple[str, ...]
    slots: tuple[int, ...]
    """Numbers of slots in the book."""
    marks: tuple[tuple[int, int, bool], ...] = ()
    """Where marked text begins (True) or ends: number of a literal, and a place in it."""

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Outline:
        """The outline that pieces make."""
        literals, slots, marks = [""], [], []
        for piece in pieces:
            if isinstance(piece, str):
                literals[-1] += piece
            elif isinstance(piece, bool):
                marks.append((len(literals) - 1, len(literals[-1]), piece))
            else:
                slots.append(piece)
                literals.append("")
        return cls(tuple(literals), tuple(slots), tuple(marks))

    def filled(self, values: Sequence[str]) -> str:
        """The text with the slots' texts in it."""
        parts = [""] * (len(self.literals) + len(self.slots))
        parts[::2] = self.literals
        parts[1::2] = [values[slot] for slot in self.slots]
        return "".join(parts)

    def places(self, values: Sequence[str]) -> list[int]:
        """The character at which each literal begins."""
        places = [0]
        for literal, slot in zip(self.literals, self.slots, strict=False):
            places.append(places[-1] + len(literal) + len(values[slot]))
        return places

    def blocks(self, values: Sequence[str]) -> list[tuple[int, int]]:
        """First and last + 1 character of each marked block, in the order in which they end."""
        if not self.marks:
            return []
        places = self.places(values)
        blocks, open_at = [], []
        for literal, place, is_begin in self.marks:
            if is_begin:
                open_at.append(places[literal] + place)
            else:
                blocks.append((open_at.pop(), places[literal] + place))
        return blocks

    def begins_with(self, other: Outline) -> bool:
        """Whether every text of this outline begins with that of another, whatever is in the slots."""
        last = len(other.slots)
        return (
            len(self.slots) >= last
            and self.slots[:last] == other.slots
            and self.literals[:last] == other.literals[:last]
            and self.literals[last].startswith(other.literals[last])
        )


class _MarkedScope(Extension):
    """`{% generation %}`, whose text is marked."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """The body between two marks, in a scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([self.call_method("mark", [nodes.Const(value)])]) for value in (True, False))
        return nodes.Scope([begin, *body, end]).set_lineno(line)

    def mark(self, is_begin: bool) -> Blank:
        """A mark, as a text of no characters."""
        environment = self.environment
        assert isinstance(environment, BlankEnvironment)
        return Blank(environment.book, (is_begin,))


class BlankEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates get blanks.  Holds the book being written, so it serves one rendering at a time."""

    code_generator_class = ShadowCodeGenerator
    intercepted_binops = frozenset(["%"])
    concat = staticmethod(lambda parts: joined(list(parts)))

    def __init__(self, like: jinja2.Environment) -> None:
        """With the filters, tests, globals and whitespace rules of another environment."""
        super().__init__(
            trim_blocks=like.trim_blocks,
            lstrip_blocks=like.lstrip_blocks,
            extensions=[_MarkedScope, loopcontrols],
            optimized=False,
        )
        self.at = None
        self.book = Book({})
        self.globals.update(like.globals)
        self.filters = {name: _guarded_filter(name, function) for name, function in like.filters.items()}
        self.tests = {name: _guarded_test(name, function) for name, function in like.tests.items()}

    # --- called by the code that the template is compiled to

    def enter(self, value: Any, before: Any) -> None:
        """A loop is at this value."""

    def shown(self, value: Any) -> Any:
        """What is written for a value."""
        if isinstance(value, (Blank, str)):
            return value
        if holds_blank(value) and not isinstance(value, jinja2.Undefined):
            raise Unsettled
        return str(value)

    def kept(self, value: Any) -> Any:
        """What is assigned."""
        return value

    def texts_joined(self, values: Iterable[Any]) -> Any:
        """`a ~ b`."""
        return joined([self.shown(value) for value in values])

    # --- called by Jinja

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`a.b`: of a blank its methods."""
        return obj.method(attribute) if isinstance(obj, Blank) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`a[b]`."""
        if isinstance(obj, Blank) or isinstance(argument, Blank):
            raise Unsettled
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """A function: only macros, namespaces and methods of a message may get blanks."""
        passed = [*arguments, *(value for name, value in keywords.items() if not name.startswith("_"))]
        if any(map(holds_blank, passed)) and not (isinstance(obj, Macro) or obj is Namespace):
            raise Unsettled
        return super().call(context, obj, *arguments, **keywords)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`%`, which formats where the left side is text."""
        if holds_blank(left) or holds_blank(right):
            raise Unsettled
        return super().call_binop(context, operator, left, right)


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which raises where it might look at a blank."""

    @wraps(function)  # copies Jinja's own marks too: whether it gets the context first
    def guarded(*arguments: Any, **keywords: Any) -> Any:
        if hasattr(function, "jinja_pass_arg"):
            passed = [*arguments[1:], *keywords.values()]
        else:
            passed = [*arguments, *keywords.values()]
        if not any(map(holds_blank, passed)):
            return function(*arguments, **keywords)
        if isinstance(passed[0], Blank):
            if name == "trim":
                return passed[0].trimmed(*passed[1:])
            if name == "string":
                return passed[0]
        if name in ("d", "default") or (name in _OF_LISTS and not any(isinstance(value, Blank) for value in passed)):
            return function(*arguments, **keywords)
        raise Unsettled

    return guarded


def _guarded_test(name: str, function: Any) -> Callable[..., Any]:
    """The test, which raises where it might look at a blank."""

    @wraps(function)
    def guarded(*arguments: Any) -> Any:
        if not any(map(holds_blank, arguments)):
            return function(*arguments)
        if len(arguments) == 2 and name in _EQUALS:
            return arguments[0] == arguments[1]
        if len(arguments) == 2 and name in _DIFFERS:
            return arguments[0] != arguments[1]
        if len(arguments) > 1 or name not in _ANSWERS:
            raise Unsettled
        return _ANSWERS[name] if isinstance(arguments[0], Blank) else function(arguments[0])

    return guarded


class Outliner:
    """Makes outlines of one template."""

    def __init__(self, renderer: Renderer, template: str) -> None:
        self._environment: BlankEnvironment | None = None
        if not any(word in template for word in _NOT_REPEATABLE):
            self._environment = BlankEnvironment(renderer.stock_environment)
            self._template = self._environment.from_string(template)
            self._globals = dict(self._template.globals)
        self._renderer = renderer

    def book(self, messages: Sequence[Mapping[str, Any]]) -> Book:
        """An empty book for conversations of this shape; texts are named by the fields of the messages as given."""
        return Book(
            {
                (number, name): value
                for number, message in enumerate(messages)
                for name, value in message.items()
                if isinstance(value, str) and name not in IDENTIFIERS
            }
        )

    def outline(
        self,
        book: Book,
        conversation: Conversation,
        messages: Sequence[Mapping[str, Any]],
        num_messages: int,
        *,
        prompt: bool = False,
        with_marks: bool = False,
    ) -> Outline:
        """What the template writes for the first messages, perhaps with the generation prompt, and with marks.

        Raises:
            Unsettled: it does more with texts than is followed.
            Exception: whatever the template raises, of a blank or of itself.
        """
        if self._environment is None:
            raise Unsettled
        renderer = self._renderer
        given = conversation.messages[:num_messages]
        blanks = [_blanks(message, messages[number], number, book) for number, message in enumerate(given)]
        self._environment.book = book
        variables = renderer.variables(conversation, num_messages, prompt)
        context = self._template.new_context({**self._globals, **variables, "messages": blanks}, shared=True)
        pieces = [piece for part in self._template.root_render_func(context) for piece in pieces_of(part)]
        return Outline.of(piece for piece in pieces if with_marks or not isinstance(piece, bool))


def _blanks(message: Mapping[str, Any], given: Mapping[str, Any], number: int, book: Book) -> dict[str, Any]:
    """A message as a template sees it, with blanks for its texts."""
    return {
        name: book.blank(Slot((number, _field(name, value, given))))
        if isinstance(value, str) and name not in IDENTIFIERS
        else value
        for name, value in message.items()
    }


def _field(name: str, value: str, given: Mapping[str, Any]) -> str:
    """The field that a text comes from: transformers hands reasoning on under other names too."""
    if given.get(name) is value:
        return name
    others = [other for other, text in given.items() if text is value]
    if len(others) != 1:
        raise Unsettled
    return others[0]
