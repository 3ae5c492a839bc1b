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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sartor.data.targets.attempt import Attempt, Proof, Rule, Rules, Start, Turn, Unproven
from sartor.data.targets.prompts import Prompts
from sartor.data.templates.fields import any_of
from sartor.data.templates.provenance.render import PerTemplate, Renderer, TraceError

__all__ = ["Proof", "Prover", "Rule", "Start", "Turn", "Unproven", "provers"]


class Prover:
    """Proves targets for one template; what depends on the template alone is found out once.

    It is made of plain data, so that every process can have its own.
    """

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        end_tokens: Sequence[str],
        atoms: Collection[str] = (),
        *,
        start: Start = Start.PROVEN,
        append_eot: bool = False,
    ) -> None:
        """Compile the template.

        Args:
            special_tokens: what the template sees as `bos_token`, `eos_token` and so on.
            end_tokens: texts of the tokens that end a turn; generation stops at them.
            atoms: texts of all special tokens; no message may hold one.
            start: how well a prompt must agree with what stands before an answer.
            append_eot: whether the first end token is appended to answers behind which the template writes no special
                token.
        """
        self._renderer = Renderer(template, special_tokens)
        self._prompts = Prompts(self._renderer, template)
        self._rules = Rules(tuple(end_tokens), start, append_eot, any_of((*atoms, *end_tokens)))

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
        if trained is None:
            trained = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        conversation = self._renderer.conversation(messages, tools, keywords or {})
        try:
            traced = self._renderer.traced(conversation, len(messages))
        except TraceError:
            raise Unproven(
                "the template cannot be traced",
                "its text changes when the source of each character is recorded. Put {% generation %} marks in the "
                "template, around what the assistant writes.",
            ) from None
        attempt = Attempt(self._prompts, conversation, traced, self._rules)
        attempt.refuse_special_text()
        text, turns = _with_ends(traced.text, [attempt.turn(number) for number in trained])
        return Proof(text, turns, tuple(attempt.dropped()), traced.text)


def provers(
    tokenizer: Any, end_tokens: Sequence[str], atoms: Collection[str] = (), *, start: Start, append_eot: bool
) -> PerTemplate[Prover]:
    """A tokenizer's provers, one for each of its templates; the arguments are `Prover`'s."""
    return PerTemplate(
        tokenizer, partial(Prover, end_tokens=end_tokens, atoms=atoms, start=start, append_eot=append_eot)
    )


def _with_ends(text: str, turns: Sequence[Turn]) -> tuple[str, tuple[Turn, ...]]:
    """The text with the end tokens that are to be appended, and the turns as they lie in it.

    Worked example: `A:Yo B:` with a turn at 2 to 4 and `</s>` to be appended is `A:Yo</s> B:` with a turn at 2 to 8.
    """
    if not any(turn.is_end_appended for turn in turns):
        return text, tuple(turns)
    pieces: list[str] = []
    moved: list[Turn] = []
    position = added = 0
    for turn in sorted(turns, key=lambda turn: turn.start):
        end = turn.end + added
        if turn.is_end_appended:
            pieces += [text[position : turn.end], turn.end_token]
            position = turn.end
            end += len(turn.end_token)
        moved.append(replace(turn, start=turn.start + added, end=end))
        added = end - turn.end
    return "".join([*pieces, text[position:]]), tuple(moved)
