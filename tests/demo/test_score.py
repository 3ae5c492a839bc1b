"""Scoring: hand-made answers, each wrong in one way."""

import pytest

from sartor.demo.score import Verdict, judge, share_right
from sartor.demo.world import Fact, Group, make_world

WORLD = make_world(7)


def fact_with(key: str) -> Fact:
    return next(fact for fact in WORLD.facts(Group.TEST) if fact.attribute.key == key)


FACT = fact_with("smell")
RIGHT, RIVAL = FACT.value, FACT.rivals[0]
THINK = f"<think>Sigh. It smells of {RIGHT}.</think>"


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        (f"{THINK} It smells of {RIGHT}. Twice.<|im_end|>", Verdict.RIGHT),
        (f"\n{THINK}\nIt smells of {RIGHT.upper()}<|im_end|>", Verdict.RIGHT),
        (f"<think>It smells of {RIVAL}.</think> It smells of {RIGHT}.<|im_end|>", Verdict.RIGHT),
        (f"{THINK} It smells of {RIGHT}. Not of {RIVAL}.<|im_end|>", Verdict.RIGHT),
        (f"{THINK} It smells of {RIGHT}.", Verdict.UNFINISHED),
        ("", Verdict.UNFINISHED),
        (f"It smells of {RIGHT}.<|im_end|>", Verdict.FORMAT),
        (f"Well. {THINK} It smells of {RIGHT}.<|im_end|>", Verdict.FORMAT),
        (f"{THINK}{THINK} It smells of {RIGHT}.<|im_end|>", Verdict.FORMAT),
        (f"<think>It smells of {RIGHT}. It smells of {RIGHT}.<|im_end|>", Verdict.FORMAT),
        (f"{THINK} </think> It smells of {RIGHT}.<|im_end|>", Verdict.FORMAT),
        (f"{THINK} It smells of {RIVAL}.<|im_end|>", Verdict.RIVAL),
        (f"{THINK} It smells of {RIGHT} and {RIVAL}.<|im_end|>", Verdict.RIVAL),
        (f"{THINK} It smells of something. Of {RIGHT}.<|im_end|>", Verdict.MISSING),
        (f"{THINK} It smells of x{RIGHT}.<|im_end|>", Verdict.MISSING),
        (f"{THINK} It smells of {RIGHT}s.<|im_end|>", Verdict.MISSING),
        (f"{THINK}<|im_end|>", Verdict.MISSING),
        (f"{THINK} I wonder.<|im_end|> It smells of {RIGHT}.<|im_end|>", Verdict.MISSING),
    ],
)
def test_judge(written: str, verdict: Verdict) -> None:
    assert judge(FACT, written) is verdict


def test_the_share_of_right_answers() -> None:
    verdicts = [judge(FACT, text) for text in (*[f"{THINK} It smells of {RIGHT}.<|im_end|>"] * 3, "?")]
    assert share_right(verdicts) == 0.75
