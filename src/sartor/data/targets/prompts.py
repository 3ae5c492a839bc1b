"""What a template asks an answer with: prompts, what stands at their end, and those of other thinking modes.

What comes in: prepared conversations.  What goes out: texts, or None where the template refuses.  What it keeps true:
every text is transformers' own rendering; what depends on the template alone is found out once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sartor.data.templates.provenance.render import Conversation, Renderer, TracedText, TraceError
from sartor.data.templates.provenance.shadow import OUTSIDE
from sartor.data.templates.provenance.spans import Span, spans_of

FEW_MESSAGES = 4
"""So many are rendered as fast as what they give is told from the whole."""
MAX_PROBES = 64
"""Rows may each bring their own keywords for the template; what is known of so many is kept."""
THINKING_KEYWORDS = ("enable_thinking", "thinking")
"""What templates call the switch of their thinking mode."""

_PROBE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a template does in any conversation."""

    prompt_end: str | None
    """What the generation prompt adds; empty where it adds nothing; None where that cannot be said."""
    has_header: bool
    """Whether the template writes something of its own before an answer."""


class Prompts:
    """Prompts of one template."""

    def __init__(self, renderer: Renderer, template: str) -> None:
        self._renderer = renderer
        self._switches = [name for name in THINKING_KEYWORDS if re.search(rf"\b{name}\b", template)]
        self._probes: dict[str, Probe] = {}

    def render(self, conversation: Conversation, num_messages: int, *, prompt: bool = False) -> str | None:
        """The first messages, perhaps with the generation prompt; None where the template raises."""
        try:
            return self._renderer.text(conversation, num_messages, add_generation_prompt=prompt)
        except Exception:
            return None  # a template may refuse a part of a conversation that it takes as a whole

    def beginning(
        self, whole: TracedText, conversation: Conversation, num_messages: int, *, prompt: bool = False
    ) -> str | None:
        """The same as `render`; of many messages it is told from the whole conversation's text, where it can be."""
        told = None
        if num_messages > FEW_MESSAGES:
            told = self._renderer.beginning(whole, conversation, num_messages, prompt=prompt)
        return told if told is not None else self.render(conversation, num_messages, prompt=prompt)

    def end_of(self, conversation: Conversation, number: int, prompt: str) -> str:
        """What stands at the end of a prompt because a message of the assistant is to come.

        The longer of two: what the generation prompt adds to the text, and what follows the last message's own.
        """
        without = self.render(conversation, number)
        added = prompt[len(without) :] if without is not None and prompt.startswith(without) else ""
        try:
            tags = self._renderer.traced(conversation, number, add_generation_prompt=True).tags
        except TraceError:
            return added
        trailing = prompt[len(tags.rstrip(OUTSIDE)) :]
        return max(added, trailing, key=len)

    def variants(self, conversation: Conversation) -> Iterator[Conversation]:
        """The conversation in each other thinking mode that the template has a switch for."""
        for name in self._switches:
            for value in (True, False):
                if conversation.keywords.get(name) is not value:
                    keywords: Mapping[str, object] = {**conversation.keywords, name: value}
                    yield Conversation(conversation.messages, conversation.tools, keywords)

    def probe(self, conversation: Conversation) -> Probe:
        """What the template does with a question and an answer of two letters, given the same keywords."""
        key = repr({name: value for name, value in conversation.keywords.items() if name != "strftime_now"})
        if key not in self._probes:
            if len(self._probes) >= MAX_PROBES:
                self._probes.clear()
            self._probes[key] = self._probed(Conversation(tuple(_PROBE), None, conversation.keywords))
        return self._probes[key]

    def _probed(self, conversation: Conversation) -> Probe:
        prompt, without = self.render(conversation, 1, prompt=True), self.render(conversation, 1)
        end = (
            prompt[len(without) :]
            if prompt is not None and without is not None and prompt.startswith(without)
            else None
        )
        try:
            answered = self._renderer.traced(conversation, 2)
        except Exception:
            return Probe(end, has_header=True)
        span = spans_of(answered.tags).get(1, Span())
        head = answered.text[span.start : span.first_field] if span.first_field >= 0 else "unknown"
        return Probe(end, has_header=bool(head.strip()))
