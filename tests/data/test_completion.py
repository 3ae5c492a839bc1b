"""A completion of messages begins where trl lets it begin, but where that is within the prompt: there it is proven."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from datasets import Dataset

from sartor.data.encoding.encode import prepare
from sartor.errors import DataError
from sartor.records import DataSettings, PreparedData

from .chat_templates import CHATML, CONVERSATION, DEEPSEEK_R1, MISTRAL, QWEN3, VICUNA
from .test_assistant import MARKED, newline_pairs_tokenizer, trained, with_template
from .test_trl_templates import CALLS, RAIN, TOOLS, answer, user

SYSTEM = {"role": "system", "content": "Be grim."}
PROMPTED = MARKED + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def ready(tokenizer: Any, row: dict[str, Any], **options: Any) -> PreparedData:
    return prepare(Dataset.from_list([row]), tokenizer, DataSettings(max_length=None, **options))


def split(messages: list[Any], at: int, **columns: Any) -> dict[str, Any]:
    return {"prompt": messages[:at], "completion": messages[at:], **columns}


def test_a_prompt_that_is_rewritten_once_answers_follow_is_not_trained(tokenizer: Any) -> None:
    with_template(tokenizer, MISTRAL)
    tokenizer.bos_token = "<|endoftext|>"
    row = split([SYSTEM, *CONVERSATION], 2)
    data = ready(tokenizer, row)
    assert trained(tokenizer, data) == " Yo<|im_end|>[INST] Be grim.\n\nAnd?[/INST] No.<|im_end|>"
    assert "In 1 rows the prompt alone has other tokens than before its completion" in " ".join(data.summary.notes)
    text = tokenizer.apply_chat_template([SYSTEM, *CONVERSATION], tokenize=False)
    assert data.dataset[0]["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert trained(tokenizer, ready(tokenizer, row, completion_only_loss=False)).startswith("<|endoftext|>[INST] Hi")


def test_another_beginning_than_the_prompts_is_refused_unless_it_is_asked_for(tokenizer: Any) -> None:
    with_template(tokenizer, DEEPSEEK_R1)
    tokenizer.bos_token = "<|endoftext|>"
    row = split(CONVERSATION, 3)
    with pytest.raises(DataError, match=r"prompt not in the text \(train data, row 0\).*target_start='variant' or"):
        ready(tokenizer, row)
    assert trained(tokenizer, ready(tokenizer, row, target_start="partial")) == "No.<|im_end|>"


def test_a_row_is_cut_where_the_tokens_of_prompt_and_answer_merge() -> None:
    tokenizer = newline_pairs_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':\n\n' + m.content + (eos_token if m.role == 'assistant' else '\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n\n' }}{% endif %}"
    )
    data = ready(tokenizer, split(CONVERSATION[:2], 1))
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt)["input_ids"] + tokenizer("Yo<e>")["input_ids"]
    assert data.dataset[0]["input_ids"] == ids
    assert trained(tokenizer, data) == "Yo<e>"
    assert "1 of them are cut there" in " ".join(data.summary.notes)


def test_no_end_is_appended_to_a_completion_that_is_proven(tokenizer: Any) -> None:
    endless = MISTRAL.replace("+ eos_token", "+ '\n'").replace("| trim", "")
    with_template(tokenizer, endless)
    tokenizer.bos_token = "<|endoftext|>"
    data = ready(tokenizer, split([SYSTEM, *CONVERSATION], 2))
    assert trained(tokenizer, data) == " Yo\n[INST] Be grim.\n\nAnd?[/INST] No.\n"
    assert "no end-of-text token is trained" in " ".join(data.summary.notes)


def test_a_completion_that_begins_with_no_answer_is_trained_as_trl_does(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    data = ready(tokenizer, split(CONVERSATION, 2))
    assert trained(tokenizer, data) == "user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    assert "In 1 rows the prompt alone is tokenized otherwise" in " ".join(data.summary.notes)


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LONG = [
    SYSTEM,
    user("Hi"),
    answer("So", tool_calls=CALLS, reasoning_content="Hm"),
    RAIN,
    answer("wet", reasoning_content="Oh"),
]
FIRST, LAST = f"<think>\nHm\n</think>\n\nSo\n{CALL}<|im_end|>", "<think>\nOh\n</think>\n\nwet<|im_end|>"
BETWEEN = "\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
COMBINATIONS = {
    # (assistant_only_loss, completion_only_loss, where the completion begins): what is trained
    (False, None, 2): FIRST + BETWEEN + LAST + "\n",
    (False, None, 4): LAST + "\n",
    (True, None, 2): FIRST + LAST,
    (True, None, 4): LAST,
    (True, True, 4): LAST,
    (True, False, 4): FIRST + LAST,
}


@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_both_losses_with_tools_and_thinking(case: tuple[bool, bool | None, int], tokenizer: Any) -> None:
    assistant_only, completion_only, at = case
    with_template(tokenizer, QWEN3)
    row = split(LONG, at, tools=TOOLS)
    data = ready(tokenizer, row, assistant_only_loss=assistant_only, completion_only_loss=completion_only)
    assert trained(tokenizer, data) == COMBINATIONS[case]


@pytest.mark.parametrize(("template", "at"), list(product((PROMPTED, CHATML), (1, 3))))
def test_marks_and_proof_train_the_same_of_completions(template: str, at: int, tokenizer: Any) -> None:
    with_template(tokenizer, template)
    data = ready(tokenizer, split(CONVERSATION, at), assistant_only_loss=True)
    assert trained(tokenizer, data) == {1: "Yo<|im_end|>No.<|im_end|>", 3: "No.<|im_end|>"}[at]


def test_a_thinking_mode_of_the_row_is_honoured(tokenizer: Any) -> None:
    with_template(tokenizer, QWEN3)
    row = split(CONVERSATION[:2], 1, chat_template_kwargs={"enable_thinking": False})
    for assistant_only in (False, True):
        data = ready(tokenizer, row, assistant_only_loss=assistant_only)
        assert trained(tokenizer, data).strip() == "Yo<|im_end|>"
        assert tokenizer.decode(data.dataset[0]["input_ids"]).count("<think>") == 1


def test_a_space_that_the_prompt_does_not_end_with_is_trained_by_both(tokenizer: Any) -> None:
    with_template(tokenizer, VICUNA)
    for assistant_only in (False, True):
        data = ready(tokenizer, split(CONVERSATION[:2], 1), assistant_only_loss=assistant_only)
        assert trained(tokenizer, data) == " Yo<|im_end|>"
