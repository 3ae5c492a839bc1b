"""Put many questions to a model at once, and keep exactly what it wrote.

In: a `chat.sample.Speaker` and questions.  Out: raw text, special tokens included, so that `score` can tell whether the
model ended its own turn.  Greedy, in batches, padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartor.chat.sample import Speaker

MAX_NEW_TOKENS = 72
"""The longest bundled answer takes 53 tokens; what goes on for longer did not end its turn."""
BATCH_QUESTIONS = 128


def write_answers(speaker: Speaker, questions: Sequence[str]) -> list[str]:
    """What the model writes after each question alone, in the questions' order, up to and with the end of its turn."""
    import torch

    from sartor.chat.options import SamplingOptions

    options = SamplingOptions(greedy=True)
    prompts = [speaker.read([{"role": "user", "content": question}], options).input_ids for question in questions]
    written = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # similar lengths: little padding
    for start in range(0, len(order), BATCH_QUESTIONS):
        batch = order[start : start + BATCH_QUESTIONS]
        longest = len(prompts[batch[-1]])
        input_ids_BL = torch.full((len(batch), longest), speaker.pad_id)
        attention_mask_BL = torch.zeros_like(input_ids_BL)
        for row, index in enumerate(batch):
            input_ids_BL[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            attention_mask_BL[row, longest - len(prompts[index]) :] = 1
        output_BL = speaker.generate(input_ids_BL, MAX_NEW_TOKENS, options, attention_mask=attention_mask_BL)
        for index, ids in zip(batch, output_BL[:, longest:].tolist(), strict=True):
            written[index] = speaker.tokenizer.decode(_until_end(ids, speaker.end_ids), skip_special_tokens=False)
    return written


def _until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Up to and with the first end token; everything where there is none."""
    end = next((at for at, token_id in enumerate(ids) if token_id in end_ids), len(ids))
    return list(ids[: end + 1])
