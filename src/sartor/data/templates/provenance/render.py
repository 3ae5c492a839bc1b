"""Renders a conversation twice: as transformers does, and with the source of every character.

What comes in: a chat template and conversations.  What goes out: texts, and texts with tags.  What it keeps true: the
traced text is transformers' own, byte for byte; where it is not, that is an error and never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sartor import compat
from sartor.data.templates.provenance.environment import Message, ShadowEnvironment
from sartor.data.templates.provenance.order import Progress, WatchedMessages, spliced
from sartor.data.templates.provenance.shadow import OUTSIDE, REASONING, Kind, Shadow, joined, tag_of, tags_of

IDENTIFIERS = frozenset(["role", "name", "id", "type", "tool_call_id", "channel", "recipient"])
"""Fields that say what a message is rather than what is said.  Not tagged: templates copy them into other messages."""

T = TypeVar("T")


class TraceError(Exception):
    """The traced text of a conversation is not the text that transformers renders, so its tags prove nothing."""


@dataclass(frozen=True, slots=True)
class TracedText:
    """A rendered text, and one tag for each of its characters (see `shadow`)."""

    text: str
    tags: str
    messages: Sequence[Message] = ()
    progress: Progress | None = None
    """How the template went through these messages; None where that could not be watched."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a template sees them, and what else it is given."""

    messages: tuple[dict[str, Any], ...]
    tools: Any
    keywords: Mapping[str, Any]


class Renderer:
    """Renders with one chat template; what depends on the template alone is done once."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template.

        Args:
            special_tokens: what the template sees as `bos_token`, `eos_token` and so on.

        Raises:
            jinja2.TemplateSyntaxError: it is no template.
        """
        functions = compat.template_functions()
        self._plain_data, self._alias_reasoning = functions.plain_data, functions.alias_reasoning
        self._special_tokens = dict(special_tokens)
        self._stock = functions.compile(template)
        self._environment = ShadowEnvironment(self._stock.environment)
        self._traced = self._environment.from_string(template)
        # Jinja chains the globals anew for each rendering, which takes as long as rendering a short conversation
        self._stock_globals = dict(self._stock.globals)
        self._traced_globals = dict(self._traced.globals)
        self._reads_clock = "strftime_now" in template

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, keywords: Mapping[str, Any]
    ) -> Conversation:
        """Prepare messages as `apply_chat_template` does: plain data, no None, reasoning under all its names.

        The clock stands still from here on, so that several renderings of the same conversation agree.
        """
        plain = self._plain_data(
            [{key: value for key, value in message.items() if value is not None} for message in messages]
        )
        given = {**self._special_tokens, **self._plain_data(dict(keywords))}
        if self._reads_clock:
            given["strftime_now"] = datetime.now().strftime
        return Conversation(tuple(self._alias_reasoning(plain)), self._plain_data(tools), given)

    def text(self, conversation: Conversation, num_messages: int, *, add_generation_prompt: bool = False) -> str:
        """The first messages of a conversation, rendered by transformers' own environment."""
        context = self._stock.new_context(
            {**self._stock_globals, **self.variables(conversation, num_messages, add_generation_prompt)}, shared=True
        )
        try:
            return "".join(self._stock.root_render_func(context))
        except Exception:
            self._stock.environment.handle_exception()  # raises it as `Template.render` does
            raise

    def variables(self, conversation: Conversation, num_messages: int, add_generation_prompt: bool) -> dict[str, Any]:
        """What a template sees, as transformers' `render_jinja_template` passes it."""
        return {
            "messages": list(conversation.messages[:num_messages]),
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **conversation.keywords,
        }

    def traced(
        self, conversation: Conversation, num_messages: int, *, add_generation_prompt: bool = False
    ) -> TracedText:
        """The same with the source of every character.

        Raises:
            TraceError: tracing changed the text.
        """
        expected = self.text(conversation, num_messages, add_generation_prompt=add_generation_prompt)
        messages = [traced_message(message, i) for i, message in enumerate(conversation.messages[:num_messages])]
        variables = self.variables(conversation, num_messages, add_generation_prompt)
        progress = Progress(num_messages)
        try:
            rendered = self._watched(variables, messages, progress)
        except Exception:  # it does something with the messages that cannot be watched
            rendered = ""
        if rendered == expected:
            return TracedText(expected, tags_of(rendered), messages, progress)
        rendered = self._rendered({**variables, "messages": messages}, Progress(num_messages))
        if rendered != expected:
            raise TraceError
        return TracedText(expected, tags_of(rendered), messages)

    def beginning(
        self, whole: TracedText, conversation: Conversation, num_messages: int, *, prompt: bool
    ) -> str | None:
        """What the template writes of the first messages, perhaps with the generation prompt, told from the whole.

        None where that cannot be told; see `order`.
        """
        if whole.progress is None or whole.progress.loop is None:
            return None
        progress = Progress(num_messages, skips_below=num_messages - 1)
        variables = self.variables(conversation, num_messages, prompt)
        try:
            part = self._watched(variables, whole.messages[:num_messages], progress)
        except Exception:  # it refuses them, or cannot be watched
            return None
        return spliced(whole.text, whole.progress, str.__str__(part), progress)

    def _watched(self, variables: Mapping[str, Any], messages: Sequence[Message], progress: Progress) -> str:
        return self._rendered({**variables, "messages": WatchedMessages(messages, progress)}, progress)

    def _rendered(self, variables: Mapping[str, Any], progress: Progress) -> str:
        """The text with tags; `progress` counts its characters while they are written."""
        self._environment.at, self._environment.progress = OUTSIDE, progress
        context = self._traced.new_context({**self._traced_globals, **variables}, shared=True)
        pieces = []
        for piece in self._traced.root_render_func(context):
            progress.num_written += len(piece)
            pieces.append(piece)
        return joined(pieces)


class PerTemplate(Generic[T]):
    """What is made of a tokenizer's chat templates: one for each of them, made when it is first asked for."""

    def __init__(self, tokenizer: Any, make: Callable[[str, Mapping[str, str]], T]) -> None:
        """`make` takes a template and the texts of the tokenizer's special tokens, as `Renderer` does."""
        self._tokenizer = tokenizer
        self._make = make
        self._made: dict[str, T] = {}

    def of(self, tools: Any) -> T:
        """That of the template that rows with these tools are rendered with."""
        template = self._tokenizer.get_chat_template(None, tools)
        if template not in self._made:
            self._made[template] = self._make(template, self._tokenizer.special_tokens_map)
        return self._made[template]


def traced_message(message: Mapping[str, Any], number: int) -> Message:
    """A message whose texts are tagged with its number, and as content, reasoning or arguments."""
    fields = {}
    for key, value in message.items():
        if key in IDENTIFIERS:
            fields[key] = value
        else:
            fields[key] = _traced_value(value, number, Kind.REASONING if key in REASONING else Kind.CONTENT)
    return Message(fields, number)


def _traced_value(value: Any, number: int, kind: Kind) -> Any:
    if isinstance(value, str):
        return Shadow(value, tag_of(number, kind) * len(value))
    if isinstance(value, Mapping):
        return {
            key: item
            if key in IDENTIFIERS and kind is not Kind.ARGUMENTS
            else _traced_value(item, number, Kind.ARGUMENTS if key == "arguments" else kind)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_traced_value(item, number, kind) for item in value)
    return value
