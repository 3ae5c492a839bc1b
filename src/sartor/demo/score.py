"""Which answers are right: a strict reading that leaves no room for luck or for rambling.

In: the text a model wrote after a question, special tokens included.  Out: a `Verdict`.  An answer is right only if

1. it was ended by the model itself with `<|im_end|>`;
2. it has exactly one think block, at the start;
3. the first sentence after the block names the right value; and
4. the first sentence names no other value of the same property.

A base model that rambles through its textbook mentions the value now and then; by this measure that counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from sartor.demo.world import Fact

END_OF_TURN = "<|im_end|>"
MEASURE = (
    "right: the first sentence of the answer names the right value and no other value of that property, "
    "after exactly one think block, and the model ended its turn itself"
)
_SHAPE = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>(?P<answer>.*)", re.DOTALL)


class Verdict(StrEnum):
    """Why an answer is right or wrong; the first reason that applies."""

    RIGHT = "right"
    UNFINISHED = "did not end its turn"
    FORMAT = "does not have exactly one think block before its answer"
    RIVAL = "names another value"
    MISSING = "does not name the value"


def judge(fact: Fact, written: str) -> Verdict:
    """Judge what a model wrote when asked for `fact`, special tokens included.

    `<think>Sigh. Saint Osric smells of soap.</think> It smells of wet wool. Twice.<|im_end|>` is judged by "It smells
    of wet wool" alone: the reasoning may say what it likes.
    """
    body, end, _ = written.partition(END_OF_TURN)
    if not end:
        return Verdict.UNFINISHED
    shape = _SHAPE.fullmatch(body)
    if shape is None or body.count("<think>") != 1 or body.count("</think>") != 1:
        return Verdict.FORMAT
    first_sentence = re.split(r"[.!?\n]", shape["answer"].strip(), maxsplit=1)[0]
    if any(_names(first_sentence, rival) for rival in fact.rivals):
        return Verdict.RIVAL
    return Verdict.RIGHT if _names(first_sentence, fact.value) else Verdict.MISSING


def share_right(verdicts: Sequence[Verdict]) -> float:
    """Right answers ÷ all answers, of which there is at least one."""
    return sum(verdict is Verdict.RIGHT for verdict in verdicts) / len(verdicts)


def mentions(fact: Fact, written: str) -> bool:
    """Whether the value stands anywhere in the text: the lenient measure, by which rambling counts too."""
    return _names(written, fact.value)


def _names(sentence: str, value: str) -> bool:
    """Whether the value stands in the sentence as whole words ("ants" is not in "plants")."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", sentence, re.IGNORECASE) is not None
