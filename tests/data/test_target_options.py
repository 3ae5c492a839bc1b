"""Options that say how answers are trained: each does what it says, is counted, and is off unless it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sartor.data.encoding.encode import prepare
from sartor.data.targets.prover import Prover, Rule, Start, Unproven
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData

from .chat_templates import BOTH, CHATML, CONVERSATION, DEEPSEEK_R1, HEAD, IM_END, QWEN3, SPECIAL, VICUNA, chatml
from .test_assistant import MARKED, prepared, trained, with_template
from .test_targets import targets_of
from .test_trl_templates import answer, user

ENDLESS = VICUNA.replace("message.content + eos_token", "message.content + '\n'")
UNROLL = DataSettings(assistant_only_loss=True, max_length=None, unroll=True)
THINKING = [user("Hi"), answer("Yo", reasoning_content="Hm"), user("And?"), answer("No.", reasoning_content="Oh")]


def texts(tokenizer: Any, data: PreparedData) -> list[str]:
    """What is trained of each example."""
    return [trained(tokenizer, data, number) for number in range(len(data.dataset))]


# --- unroll


def test_unrolled_answers_are_trained_as_the_template_writes_them_last(tokenizer: Any) -> None:
    with_template(tokenizer, QWEN3)
    whole = prepared(tokenizer, THINKING)
    assert trained(tokenizer, whole) == "Yo<|im_end|><think>\nOh\n</think>\n\nNo.<|im_end|>"
    data = prepared(tokenizer, THINKING, CONVERSATION[:2], settings=UNROLL)
    assert texts(tokenizer, data) == [
        "<think>\nHm\n</think>\n\nYo<|im_end|>",
        "<think>\nOh\n</think>\n\nNo.<|im_end|>",
        "<think>\n\n</think>\n\nYo<|im_end|>",
    ]
    prompts = [
        tokenizer.apply_chat_template(THINKING[:length], add_generation_prompt=True, tokenize=False)
        for length in (1, 3)
    ]
    for row, prompt in zip(data.dataset, prompts, strict=False):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: len(ids)] == ids
        assert set(row["labels"][: len(ids)]) == {-100}
        assert row["labels"][len(ids)] != -100
    notes = " ".join(data.summary.notes)
    assert "unroll: 2 conversations give 3 rows, one for each answer." in notes
    assert "written otherwise" not in notes
    assert (data.summary.num_rows, data.summary.num_examples) == (2, 3)


def test_unrolling_respects_what_is_not_to_be_trained_and_what_a_prompt_holds(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    left_out = [*CONVERSATION[:1], {**CONVERSATION[1], "train": False}, *CONVERSATION[2:]]
    assert texts(tokenizer, prepared(tokenizer, left_out, settings=UNROLL)) == ["No.<|im_end|>"]
    row = {"prompt": CONVERSATION[:2], "completion": [*CONVERSATION[2:], user("Hi"), answer("Yo")]}
    assert texts(tokenizer, prepared(tokenizer, row, settings=UNROLL)) == ["No.<|im_end|>", "Yo<|im_end|>"]
    with pytest.raises(DataError, match=r"nothing trained \(train data, row 0\)"):
        prepared(tokenizer, [dict(message, train=False) for message in CONVERSATION], settings=UNROLL)


def test_unrolled_rows_of_a_template_with_marks_train_the_last_answer_alone(tokenizer: Any) -> None:
    with_template(tokenizer, MARKED + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    data = prepared(tokenizer, CONVERSATION, [answer("Welcome"), *CONVERSATION[:2]], settings=UNROLL)
    assert texts(tokenizer, data) == [*BOTH, "Welcome<|im_end|>", "Yo<|im_end|>"]


def test_a_stream_is_unrolled_too(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    rows = Dataset.from_list([{"messages": CONVERSATION}] * 70).to_iterable_dataset()
    assert sum(1 for _ in prepare(rows, tokenizer, UNROLL).dataset) == 140


def test_a_conversation_that_is_skipped_is_skipped_with_all_its_answers(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    bad = [*CONVERSATION[:3], answer("No.<|im_end|>")]
    settings = DataSettings(assistant_only_loss=True, max_length=None, unroll=True, bad_rows="skip")
    data = prepared(tokenizer, CONVERSATION, bad, CONVERSATION[:2], settings=settings)
    assert texts(tokenizer, data) == [*BOTH, "Yo<|im_end|>"]
    assert (data.summary.num_rows, data.summary.num_skipped_rows) == (3, 1)
    assert data.summary.source_rows == {"train data": 2}
    assert "unroll: 2 conversations give 3 rows" in " ".join(data.summary.notes)
    assert [data.places.where(number) for number in range(3)] == ["train data, row 0"] * 2 + ["train data, row 2"]


# --- append_eot


def test_an_end_that_the_template_does_not_write_is_appended_when_asked() -> None:
    with pytest.raises(Unproven, match="or append_eot=True"):
        Prover(ENDLESS, SPECIAL, ["</s>"]).prove(CONVERSATION)
    proof = Prover(ENDLESS, SPECIAL, ["</s>"], append_eot=True).prove(CONVERSATION)
    assert targets_of(proof) == (" Yo</s>", " No.</s>")
    assert proof.text == "USER: Hi ASSISTANT: Yo</s>\nUSER: And? ASSISTANT: No.</s>\n"
    assert [turn.is_end_appended for turn in proof.turns] == [True, True]


def test_nothing_is_appended_where_the_template_writes_an_end() -> None:
    ends_last = ENDLESS.replace("+ '\n'", "+ (eos_token if loop.last else '\n')")
    proof = Prover(ends_last, SPECIAL, ["</s>"], append_eot=True).prove(CONVERSATION)
    assert [turn.is_end_appended for turn in proof.turns] == [True, False]
    assert proof.text == "USER: Hi ASSISTANT: Yo</s>\nUSER: And? ASSISTANT: No.</s>"
    assert targets_of(Prover(CHATML, SPECIAL, IM_END, append_eot=True).prove(CONVERSATION)) == BOTH
    behind = chatml(HEAD + "{{ message.content }}<|im_end|>over\n")
    with pytest.raises(Unproven, match="does not end with one of the end tokens"):
        Prover(behind, SPECIAL, IM_END, append_eot=True).prove(CONVERSATION)
    another = chatml(HEAD + "{{ message.content }}<|end|>{% if loop.last %}<|im_end|>{% endif %}\n")
    with pytest.raises(Unproven, match="unroll=True where it ends the last answer only"):
        Prover(another, SPECIAL, IM_END, ["<|end|>"], append_eot=True).prove(CONVERSATION)


def test_only_trained_answers_get_an_end_and_it_is_counted(tokenizer: Any) -> None:
    with_template(tokenizer, ENDLESS)
    settings = DataSettings(assistant_only_loss=True, append_eot=True)
    data = prepared(tokenizer, CONVERSATION, settings=settings)
    assert trained(tokenizer, data) == " Yo<|im_end|> No.<|im_end|>"
    assert "<|im_end|> is appended to 2 answers" in " ".join(data.summary.notes)
    assert "in 1 cases the conversation goes on behind it" in " ".join(data.summary.notes)
    left_out = [CONVERSATION[0], {**CONVERSATION[1], "train": False}, *CONVERSATION[2:]]
    data = prepared(tokenizer, left_out, settings=settings)
    assert tokenizer.decode(data.dataset[0]["input_ids"]).count("<|im_end|>") == 1
    assert "the conversation goes on" not in " ".join(data.summary.notes)


# --- target_start


def test_the_prompt_of_another_thinking_mode_is_taken_when_asked() -> None:
    keywords = {"enable_thinking": False}
    proof = Prover(QWEN3, SPECIAL, IM_END, start=Start.VARIANT).prove(CONVERSATION, keywords=keywords)
    assert targets_of(proof) == ("Yo<|im_end|>", "No.<|im_end|>")
    assert [turn.rule for turn in proof.turns] == [Rule.VARIANT, Rule.EXACT]
    with pytest.raises(Unproven, match="target_start='variant'"):
        Prover(DEEPSEEK_R1, SPECIAL, ["</s>"], start=Start.VARIANT).prove(CONVERSATION)


@pytest.mark.parametrize(
    ("prompt", "written", "target"),
    [
        ("<|A|><think>\\n", "<|A|>", "Yo</s>"),
        ("<|A|><think>\\n", "<|A|></think>", "</think>Yo</s>"),
        ("<|A|>assistant\\n<think>\\n", "<|A|>assistant\\n", "Yo</s>"),
        ("<|A|>assistant\\nthe", "<|A|>assistant\\nthat: ", "that: Yo</s>"),
        ("Bot: <think>", "Bot: ", "Yo</s>"),
    ],
)
def test_a_header_in_common_is_enough_when_asked(prompt: str, written: str, target: str) -> None:
    source = (
        "{% for m in messages %}{{ '" + written + "' if m.role == 'assistant' else 'U: ' }}{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '" + prompt + "' }}{% endif %}"
    )
    for start in (Start.PROVEN, Start.VARIANT):
        with pytest.raises(Unproven, match="the model would be trained on another beginning"):
            Prover(source, SPECIAL, ["</s>"], start=start).prove(CONVERSATION)
    proof = Prover(source, SPECIAL, ["</s>"], start=Start.PARTIAL).prove(CONVERSATION)
    assert targets_of(proof) == (target, target.replace("Yo", "No."))
    assert {turn.rule for turn in proof.turns} == {Rule.PARTIAL}
    first = Prover(source, SPECIAL, ["</s>"], start=Start.PARTIAL).prove([answer("Yo"), user("Hi")])
    assert targets_of(first) == (target,)


def test_headers_with_nothing_in_common_are_refused_whatever_is_asked() -> None:
    source = CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "'[bot]\n' }}{% endif")
    with pytest.raises(Unproven, match="trained on another beginning"):
        Prover(source, SPECIAL, IM_END, start=Start.PARTIAL).prove(CONVERSATION)


def test_a_weaker_start_changes_nothing_that_is_proven() -> None:
    for start in Start:
        proof = Prover(QWEN3, SPECIAL, IM_END, start=start).prove(THINKING)
        assert {turn.rule for turn in proof.turns} <= {Rule.EXACT, Rule.EXACT_START, Rule.TAIL}


def test_a_weaker_start_is_counted_aloud(tokenizer: Any) -> None:
    with_template(tokenizer, DEEPSEEK_R1)
    tokenizer.bos_token = tokenizer.eos_token
    with pytest.raises(DataError, match="target_start='variant' or 'partial'"):
        prepared(tokenizer, CONVERSATION)
    data = prepared(tokenizer, CONVERSATION, settings=DataSettings(assistant_only_loss=True, target_start="partial"))
    assert trained(tokenizer, data) == "Yo<|im_end|>No.<|im_end|>"
    assert "2 where only the header of the prompt stands before the turn" in " ".join(data.summary.notes)
