"""Which characters of a conversation are trained, with any chat template: proven for each turn, or refused.

What comes in: a template and messages.  What goes out: a `Proof`, the text with the first and last character that is
trained of each assistant turn, or `Unproven` with the reason.  What it keeps true: a turn's target is what follows the
prompt that the model gets at that turn when it is used, up to and including the token that ends it; nothing is searched
for in the text, and a turn that cannot be proven is never guessed.

Worked example, ChatML, a user's `Hi` answered with `Yo` (newlines as ⏎), and the source of each character: `.`
outside any message, digits the template's own text at message 0 or 1, letters their contents:

    <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Yo<|im_end|>⏎
    00000000000000000aa000000000001111111111111111111111bb11111111111

The prompt at message 1, `render(messages[:1], add_generation_prompt=True)`, is the text up to `assistant⏎`; the whole
text begins with it, so the turn begins there.  It ends with the last end token behind `Yo`: the target is
`Yo<|im_end|>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sartor.data.provenance.render import Conversation, Renderer, TracedText, TraceError
from sartor.data.provenance.shadow import MIX, OUTSIDE, Kind, kind_of, message_of, tag_of
from sartor.data.provenance.spans import Span, kinds_of, spans_of

MAX_PROBES = 64
"""Rows may each bring their own keywords for the template; what is known of so many is kept."""

_PROBE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


class Rule(StrEnum):
    """How the start of a turn was proven."""

    EXACT = "the prompt and the conversation up to this turn are how the text begins"
    EXACT_START = "the prompt is how the text begins, and ends in this turn"
    TAIL = "earlier text is written otherwise later on; the turn begins with the end of its prompt"
    FOUND = "no prompt can be rendered; its usual end occurs once at the head of the turn"
    NO_PROMPT = "the template writes nothing at the head of a turn"


@dataclass(frozen=True, slots=True)
class Turn:
    """One trained turn: characters `start` to `end` of the text, the last of which are the end token."""

    message: int
    start: int
    end: int
    end_token: str
    rule: Rule
    is_rewritten: bool
    """Whether the template writes this turn otherwise when it is the last: what is trained is not what is generated."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A conversation's text, and what of it is trained."""

    text: str
    turns: tuple[Turn, ...]
    dropped: tuple[tuple[int, Kind], ...]
    """Fields that the template leaves out: message and which."""


class Unproven(Exception):
    """A conversation whose targets cannot be proven: `kind`, the same for all such rows, and what to do."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Probe:
    """What a template does in any conversation."""

    prompt_end: str | None
    """What the generation prompt adds; empty where it adds nothing; None where that cannot be said."""
    has_header: bool
    """Whether the template writes something of its own before an answer."""


class Prover:
    """Proves targets for one template; what depends on the template alone is found out once."""

    def __init__(
        self, template: str, special_tokens: Mapping[str, str], end_tokens: Sequence[str], atoms: Collection[str] = ()
    ) -> None:
        """Compile the template.

        Args:
            special_tokens: what the template sees as `bos_token`, `eos_token` and so on.
            end_tokens: texts of the tokens that end a turn; generation stops at them.
            atoms: texts of all special tokens; no message may hold one.
        """
        self._renderer = Renderer(template, special_tokens)
        self._end_tokens = tuple(end_tokens)
        self._atoms = re.compile("|".join(map(re.escape, sorted({*atoms, *end_tokens}, key=len, reverse=True))))
        self._probes: dict[str, _Probe] = {}

    def prove(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any = None,
        keywords: Mapping[str, Any] | None = None,
        trained: Collection[int] | None = None,
    ) -> Proof:
        """Prove what is trained of a conversation.

        Args:
            trained: numbers of the messages to train; None: all of the assistant.

        Raises:
            Unproven: a turn's target cannot be proven.
            Exception: whatever the template raises.
        """
        conversation = self._renderer.conversation(messages, tools, keywords or {})
        try:
            traced = self._renderer.traced(conversation, len(messages))
        except TraceError:
            raise Unproven(
                "the template cannot be traced",
                "its text changes when the source of each character is recorded. Put {% generation %} marks in the "
                "template, around what the assistant writes.",
            ) from None
        if trained is None:
            trained = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        attempt = _Attempt(self, conversation, traced)
        attempt.refuse_special_text(self._atoms)
        turns = tuple(attempt.turn(number, self._end_tokens) for number in trained)
        return Proof(traced.text, turns, tuple(attempt.dropped()))

    def render(self, conversation: Conversation, num_messages: int, *, prompt: bool = False) -> str | None:
        """The first messages, perhaps with the generation prompt; None where the template raises."""
        try:
            return self._renderer.text(conversation, num_messages, add_generation_prompt=prompt)
        except Exception:
            return None  # a template may refuse a part of a conversation that it takes as a whole

    def prompt_end(self, conversation: Conversation, number: int, prompt: str) -> str:
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

    def probe(self, conversation: Conversation) -> _Probe:
        """What the template does with a question and an answer of two letters, given the same keywords."""
        key = repr({name: value for name, value in conversation.keywords.items() if name != "strftime_now"})
        if key not in self._probes:
            if len(self._probes) >= MAX_PROBES:
                self._probes.clear()
            self._probes[key] = self._probed(Conversation(tuple(_PROBE), None, conversation.keywords))
        return self._probes[key]

    def _probed(self, conversation: Conversation) -> _Probe:
        prompt, without = self.render(conversation, 1, prompt=True), self.render(conversation, 1)
        end = (
            prompt[len(without) :]
            if prompt is not None and without is not None and prompt.startswith(without)
            else None
        )
        try:
            answered = self._renderer.traced(conversation, 2)
        except Exception:
            return _Probe(end, has_header=True)
        span = spans_of(answered.tags).get(1, Span())
        head = answered.text[span.start : span.first_field] if span.first_field >= 0 else "unknown"
        return _Probe(end, has_header=bool(head.strip()))


class _Attempt:
    """One conversation on its way to a proof."""

    def __init__(self, prover: Prover, conversation: Conversation, traced: TracedText) -> None:
        self._prover = prover
        self._conversation = conversation
        self._text, self._tags = traced.text, traced.tags
        self._spans = spans_of(traced.tags)

    def refuse_special_text(self, atoms: re.Pattern[str]) -> None:
        """No message may hold what the tokenizer takes for a special token.

        An end of turn in an answer ends nothing.
        """
        for match in atoms.finditer(self._text):
            for tag in set(self._tags[match.start() : match.end()]) - {OUTSIDE}:
                if tag == MIX or kind_of(tag) is not Kind.LITERAL:
                    whose = "a message" if tag == MIX else f"message {_number(message_of(tag))}"
                    raise Unproven(
                        "special token in a message",
                        f"the text of {whose} holds {match[0]!r}, which the tokenizer takes for a special token. "
                        "Remove it.",
                    )

    def dropped(self) -> list[tuple[int, Kind]]:
        """Fields that are not in the text at all."""
        return [
            (number, kind)
            for number, message in enumerate(self._conversation.messages)
            for kind in kinds_of(message)
            if kind not in self._spans.get(number, Span()).kinds
        ]

    def turn(self, number: int, end_tokens: Sequence[str]) -> Turn:
        """Prove one turn.

        Raises:
            Unproven: it cannot be.
        """
        span = self._spans.get(number)
        message = self._conversation.messages[number]
        if span is None and MIX in self._tags:
            raise Unproven(
                "messages mixed",
                "the template makes one text of several messages, of which the parts cannot be told apart. Put "
                "{% generation %} marks in the template.",
            )
        if span is None or (not span.kinds and kinds_of(message)):
            raise Unproven("message not rendered", f"the template leaves out message {_number(number)}. Remove it.")
        prompt = self._prover.render(self._conversation, number, prompt=True) if number else None
        is_last = number + 1 == len(self._conversation.messages)
        until = self._text if is_last else self._prover.render(self._conversation, number + 1)
        rule, start, limit = self._start(number, span, prompt, until)
        self._refuse_foreign(number, span, start, limit)
        end, end_token = self._end(number, span, start, limit, end_tokens)
        self._refuse_header(number, start, end)
        is_rewritten = not is_last and rule is not Rule.EXACT and self._differs(prompt, until, start, end)
        return Turn(number, start, end, end_token, rule, is_rewritten)

    def _start(self, number: int, span: Span, prompt: str | None, until: str | None) -> tuple[Rule, int, int]:
        """How a turn's start is proven, where it is, and where the turn ends at the latest."""
        text = self._text
        if prompt is not None and text.startswith(prompt):
            self._refuse_without_prompt(number, prompt)
            start = len(prompt)
            if (
                until is not None
                and start < len(until)
                and text.startswith(until)
                and self._is_own(number, start, len(until))
            ):
                return Rule.EXACT, start, len(until)
            if span.num_runs == 1 and span.start <= start <= span.end:
                return Rule.EXACT_START, start, span.end
        if span.num_runs != 1:
            raise Unproven(
                "turn in several pieces",
                f"the template writes message {_number(number)} in {span.num_runs} pieces. Put {{% generation %}} "
                "marks "
                "in the template.",
            )
        self._refuse_moved(number, span)
        head = text[span.start : span.end if span.first_field < 0 else span.first_field]
        if prompt is None:
            return self._found(number, span, head)
        end_of_prompt = self._prover.prompt_end(self._conversation, number, prompt)
        if end_of_prompt and text.startswith(end_of_prompt, span.start):
            return Rule.TAIL, span.start + len(end_of_prompt), span.end
        if not end_of_prompt and not head.strip():
            return Rule.NO_PROMPT, span.start, span.end
        raise Unproven(
            "prompt not in the text",
            f"message {_number(number)} is written after {head[:80]!r}, but an answer is asked for with "
            f"{end_of_prompt[-80:]!r}: the model would be trained on another beginning than it gets. Set "
            "chat_template_kwargs, or tokenizer.chat_template, so that both agree.",
        )

    def _found(self, number: int, span: Span, head: str) -> tuple[Rule, int, int]:
        """The start where no prompt can be rendered: the first message, or a template that refuses those before."""
        end_of_prompt = self._prover.probe(self._conversation).prompt_end
        if end_of_prompt and head.count(end_of_prompt) == 1:
            return Rule.FOUND, span.start + head.index(end_of_prompt) + len(end_of_prompt), span.end
        if end_of_prompt == "" and not head.strip():
            return Rule.NO_PROMPT, span.start, span.end
        raise Unproven(
            "no prompt for a turn",
            f"the template gives no prompt for message {_number(number)}, so where its target begins cannot be proven. "
            "Let the conversation begin with a message of the user.",
        )

    def _refuse_without_prompt(self, number: int, prompt: str) -> None:
        """A template that has no generation prompt but writes a header would have the header trained."""
        probe = self._prover.probe(self._conversation)
        if probe.prompt_end and prompt.endswith(probe.prompt_end):
            return
        if probe.has_header and prompt == self._prover.render(self._conversation, number):
            raise Unproven(
                "no generation prompt",
                "the template writes a header before an answer, but not with add_generation_prompt=True, so the header "
                "would be trained. Let the template write it then too.",
            )

    def _is_own(self, number: int, start: int, end: int) -> bool:
        """Whether no other message's text is between two characters."""
        return all(tag == OUTSIDE or message_of(tag) == number for tag in set(self._tags[start:end]))

    def _refuse_foreign(self, number: int, span: Span, start: int, limit: int) -> None:
        if span.first_field >= 0 and not (min(span.start, start) <= span.first_field and span.last_field <= limit):
            raise Unproven(
                "turn in several pieces", f"the template writes text of message {_number(number)} outside its turn."
            )
        if not self._is_own(number, min(start, span.first_field if span.first_field >= 0 else start), limit):
            raise Unproven(
                "turn holds other text", f"the template writes other messages' text into message {_number(number)}."
            )

    def _refuse_moved(self, number: int, span: Span) -> None:
        """Messages must stay in order; system messages are moved by templates that have no role for them."""
        for other, message in enumerate(self._conversation.messages):
            place = self._spans.get(other)
            if other == number or place is None or place.first_field < 0 or message.get("role") == "system":
                continue
            if place.last_field > span.start if other < number else place.first_field < span.end:
                raise Unproven(
                    "messages out of order",
                    f"the template writes message {_number(other)} on the wrong side of message {_number(number)}.",
                )

    def _end(self, number: int, span: Span, start: int, limit: int, end_tokens: Sequence[str]) -> tuple[int, str]:
        """Where the turn's end token ends, and which it is."""
        after = max(start, span.last_field)
        found = [(self._text.rfind(token, after, limit) + len(token), token) for token in end_tokens]
        found = [(end, token) for end, token in found if end - len(token) >= after]
        if found:
            end, token = max(found)
            if not self._text[end:limit].strip():
                return end, token
        for token in end_tokens:
            if (
                not found
                and self._text.startswith(token, limit)
                and not set(self._tags[limit : limit + len(token)])
                - {
                    OUTSIDE,
                    *(tag_of(message, Kind.LITERAL) for message in (number, number + 1)),
                }
            ):
                return limit + len(token), token
        raise Unproven(
            "no end token",
            f"behind message {_number(number)} the template writes {self._text[after:limit][:80]!r}, and not one "
            "of the "
            f"end tokens ({', '.join(end_tokens)}), so the model would not learn to stop. Set eos_token to the "
            "token that "
            "ends an answer in the chat template.",
        )

    def _refuse_header(self, number: int, start: int, end: int) -> None:
        """The template must not write a second header inside of what is trained."""
        header = (self._prover.probe(self._conversation).prompt_end or "").strip()
        place = self._text.find(header, start, end) if header else -1
        if place >= 0 and self._tags[place] == tag_of(number, Kind.LITERAL):
            raise Unproven(
                "header in the target", f"the template writes {header!r} again inside of message {_number(number)}."
            )

    def _differs(self, prompt: str | None, until: str | None, start: int, end: int) -> bool:
        """Whether a turn is written otherwise when it is the last."""
        target = self._text[start:end]
        if until is None:
            return False
        if prompt is not None and until.startswith(prompt):
            return not until.startswith(target, len(prompt))
        return target not in until


def _number(message: int | None) -> int:
    """A message's number as people count, from 1."""
    return 1 if message is None else message + 1
