"""Proves one conversation's turns, one after the other: where each begins and ends, or why that cannot be said.

What comes in: a traced text and the template's prompts.  What goes out: a `Turn` for each answer, or `Unproven`.  What
it keeps true: a start is what a prompt ends at, an end is a token at which generation stops; nothing is searched for in
the contents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from sartor.data.reading.problems import BadRow
from sartor.data.targets.prompts import Prompts
from sartor.data.templates.fields import kinds_of
from sartor.data.templates.provenance.render import Conversation, TracedText
from sartor.data.templates.provenance.shadow import MIX, OUTSIDE, Kind, kind_of, message_of, tag_of
from sartor.data.templates.provenance.spans import Span, spans_of

NOT_IN_TEXT, NO_PROMPT_FOR_TURN = "prompt not in the text", "no prompt for a turn"
_HEADER = re.compile(r".*(?:[>\]]|:\s?|\n)", re.DOTALL)
"""Where the part that two headers have in common may be cut: behind a mark or a line, not within a word."""


class Start(StrEnum):
    """How well a prompt must agree with what stands before an answer; each includes those before it."""

    PROVEN = "proven"
    """The text before the answer is the prompt that the model gets."""
    VARIANT = "variant"
    """Or the prompt of another thinking mode."""
    PARTIAL = "partial"
    """Or only a header that both begin with."""


class Rule(StrEnum):
    """How the start of a turn was proven."""

    EXACT = "the prompt and the conversation up to this turn are how the text begins"
    EXACT_START = "the prompt is how the text begins, and ends in this turn"
    TAIL = "earlier text is written otherwise later on; the turn begins with the end of its prompt"
    FOUND = "no prompt can be rendered; its usual end occurs once at the head of the turn"
    NO_PROMPT = "the template writes nothing at the head of a turn"
    VARIANT = "the turn begins behind the prompt of another thinking mode than the row's"
    PARTIAL = "only the header of the prompt stands before the turn"


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
    is_end_appended: bool = False
    """Whether the template writes no end token there: it is appended."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A conversation's text, and what of it is trained."""

    text: str
    turns: tuple[Turn, ...]
    dropped: tuple[tuple[int, Kind], ...]
    """Fields that the template leaves out: message and which."""
    unended: str
    """The text as the template writes it, without end tokens that were appended."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of a proof."""

    end_tokens: tuple[str, ...]
    """Texts of the tokens that end a turn; the first is the one that may be appended."""
    start: Start
    append_eot: bool
    """Whether an answer behind which the template writes no special token at all has an end token appended."""
    atoms: re.Pattern[str]
    """Finds special tokens."""


class Unproven(BadRow):
    """A conversation whose targets cannot be proven, and what to do."""


class Attempt:
    """One conversation on its way to a proof."""

    def __init__(self, prompts: Prompts, conversation: Conversation, traced: TracedText, rules: Rules) -> None:
        self._prompts = prompts
        self._conversation = conversation
        self._rules = rules
        self._text, self._tags = traced.text, traced.tags
        self._traced = traced
        self._spans = spans_of(traced.tags)

    def refuse_special_text(self) -> None:
        """No message may hold what the tokenizer takes for a special token.

        An end of turn in an answer ends nothing.
        """
        for match in self._rules.atoms.finditer(self._text):
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
            for kind in sorted(kinds_of(message) - self._spans.get(number, Span()).kinds)
        ]

    def turn(self, number: int) -> Turn:
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
        prompt = self._prompt(self._conversation, number)
        is_last = number + 1 == len(self._conversation.messages)
        until = self._text if is_last else self._beginning(number + 1)
        rule, start, limit = self._start(number, span, prompt, until)
        self._refuse_foreign(number, span, start, limit)
        end, end_token, is_appended = self._end(number, span, start, limit)
        self._refuse_header(number, start, end)
        is_rewritten = not is_last and rule is not Rule.EXACT and self._differs(prompt, until, start, end)
        return Turn(number, start, end, end_token, rule, is_rewritten, is_appended)

    def _prompt(self, conversation: Conversation, number: int) -> str | None:
        """The prompt for a message; None where there is none, as before the first."""
        if not number:
            return None
        if conversation is self._conversation:
            return self._beginning(number, prompt=True)
        return self._prompts.render(conversation, number, prompt=True)

    def _beginning(self, num_messages: int, *, prompt: bool = False) -> str | None:
        """What the template writes of the first messages, perhaps with the generation prompt; None where it raises."""
        return self._prompts.beginning(self._traced, self._conversation, num_messages, prompt=prompt)

    def _start(self, number: int, span: Span, prompt: str | None, until: str | None) -> tuple[Rule, int, int]:
        """How a turn's start is proven, where it is, and where the turn ends at the latest."""
        try:
            return self._proven_start(number, span, prompt, until, self._conversation)
        except Unproven as refusal:
            asked = self._rules.start
            if asked is Start.PROVEN or refusal.kind not in (NOT_IN_TEXT, NO_PROMPT_FOR_TURN):
                raise
            weaker = self._variant_start(number, span)
            if weaker is None and asked is Start.PARTIAL:
                weaker = self._partial_start(number, span, prompt)
            if weaker is None:
                raise
            return weaker

    def _variant_start(self, number: int, span: Span) -> tuple[Rule, int, int] | None:
        """The start behind the prompt of another thinking mode."""
        for variant in self._prompts.variants(self._conversation):
            try:
                _, start, limit = self._proven_start(number, span, self._prompt(variant, number), None, variant)
            except Unproven:
                continue
            return Rule.VARIANT, start, limit
        return None

    def _partial_start(self, number: int, span: Span, prompt: str | None) -> tuple[Rule, int, int] | None:
        """The start behind the header that the prompt's end and the turn have in common.

        Worked example, DeepSeek R1: asked for with `<|Assistant|><think>⏎`, written as `<|Assistant|>Yo`: behind
        `<|Assistant|>`.
        """
        if prompt is None:
            end_of_prompt = self._prompts.probe(self._conversation).prompt_end or ""
        else:
            end_of_prompt = self._prompts.end_of(self._conversation, number, prompt)
        head = self._head(span)
        common = _common_prefix(end_of_prompt, head)
        if common != head:
            whole = _HEADER.match(common)
            common = whole[0] if whole else ""
        return (Rule.PARTIAL, span.start + len(common), span.end) if common.strip() else None

    def _head(self, span: Span) -> str:
        """What the template writes before a message's own text."""
        return self._text[span.start : span.end if span.first_field < 0 else span.first_field]

    def _proven_start(
        self, number: int, span: Span, prompt: str | None, until: str | None, asked: Conversation
    ) -> tuple[Rule, int, int]:
        """The start behind the prompt, which is rendered of the conversation as it is asked."""
        text = self._text
        if prompt is not None and text.startswith(prompt):
            self._refuse_without_prompt(number, prompt, asked)
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
        head = self._head(span)
        if prompt is None:
            return self._found(number, span, head, asked)
        end_of_prompt = self._prompts.end_of(asked, number, prompt)
        if end_of_prompt and text.startswith(end_of_prompt, span.start):
            return Rule.TAIL, span.start + len(end_of_prompt), span.end
        if not end_of_prompt and not head.strip():
            return Rule.NO_PROMPT, span.start, span.end
        raise Unproven(
            NOT_IN_TEXT,
            f"message {_number(number)} is written after {head[:80]!r}, but an answer is asked for with "
            f"{end_of_prompt[-80:]!r}: the model would be trained on another beginning than it gets. Set "
            "chat_template_kwargs, or tokenizer.chat_template, so that both agree; or set target_start='variant' or "
            "'partial' to train it all the same.",
        )

    def _found(self, number: int, span: Span, head: str, asked: Conversation) -> tuple[Rule, int, int]:
        """The start where no prompt can be rendered: the first message, or a template that refuses those before."""
        end_of_prompt = self._prompts.probe(asked).prompt_end
        if end_of_prompt and head.count(end_of_prompt) == 1:
            return Rule.FOUND, span.start + head.index(end_of_prompt) + len(end_of_prompt), span.end
        if end_of_prompt == "" and not head.strip():
            return Rule.NO_PROMPT, span.start, span.end
        raise Unproven(
            NO_PROMPT_FOR_TURN,
            f"the template gives no prompt for message {_number(number)}, so where its target begins cannot be proven. "
            "Let the conversation begin with a message of the user.",
        )

    def _refuse_without_prompt(self, number: int, prompt: str, asked: Conversation) -> None:
        """A template that has no generation prompt but writes a header would have the header trained."""
        probe = self._prompts.probe(asked)
        if probe.prompt_end and prompt.endswith(probe.prompt_end):
            return
        if probe.has_header and prompt == self._prompts.render(asked, number):
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

    def _end(self, number: int, span: Span, start: int, limit: int) -> tuple[int, str, bool]:
        """Where the turn's end token ends, which it is, and whether it is still to be put there."""
        after, end_tokens = max(start, span.last_field), self._rules.end_tokens
        found = [(self._text.rfind(token, after, limit) + len(token), token) for token in end_tokens]
        found = [(end, token) for end, token in found if end - len(token) >= after]
        if found:
            end, token = max(found)
            if not self._text[end:limit].strip():
                return end, token, False
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
                return limit + len(token), token, False
        tail = self._text[after:limit].rstrip()
        if self._rules.append_eot and not self._rules.atoms.search(tail):
            return after + len(tail), end_tokens[0], True
        raise Unproven(
            "no end token",
            f"behind message {_number(number)} the template writes {self._text[after:limit][:80]!r}, which does not "
            f"end with one of the end tokens ({', '.join(end_tokens)}), so the model would not learn to stop. Set "
            "eos_token to the token that ends an answer in the chat template; or unroll=True where it ends the last "
            "answer only; or append_eot=True where it writes none, to have it appended.",
        )

    def _refuse_header(self, number: int, start: int, end: int) -> None:
        """The template must not write a second header inside of what is trained."""
        header = (self._prompts.probe(self._conversation).prompt_end or "").strip()
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


def _common_prefix(first: str, second: str) -> str:
    """What two texts begin with: `ab` of `abc` and `abd`."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))]
