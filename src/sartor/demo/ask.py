"""Put many questions to a model at once, and keep exactly what it wrote.

In: a `chat.sample.Speaker` and questions.  Out: raw text, special tokens included, so that `score` can tell whether the
model ended its own turn.  Greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartor.chat.sample import Speaker

MAX_NEW_TOKENS = 72
"""The longest bundled answer takes 53 tokens; what goes on for longer did not end its turn."""


def write_answers(speaker: Speaker, questions: Sequence[str]) -> list[str]:
    """What the model writes after each question alone, in the questions' order, up to and with the end of its turn."""
    from sartor.chat.options import SamplingOptions

    options = SamplingOptions(greedy=True, max_new_tokens=MAX_NEW_TOKENS)
    answers = speaker.answer_ids([[{"role": "user", "content": question}] for question in questions], options)
    return [speaker.tokenizer.decode(ids, skip_special_tokens=False) for ids in answers]
