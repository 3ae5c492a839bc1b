"""The built-in template renders ChatML, ends answers with the token generation stops at, and drops nothing."""

from typing import Any

import pytest
from datasets import Dataset

from sartor.data.encoding.encode import prepare
from sartor.data.templates.rendering import CHATML, adopt_chatml
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings

MESSAGES = [
    {"role": "system", "content": "Be grim."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
]


def test_it_renders_chatml_where_the_vocabulary_has_its_marks(tokenizer: Any) -> None:
    note = adopt_chatml(tokenizer)
    assert note == "The tokenizer has no chat template: the built-in chatml is used; an answer ends with <|im_end|>."
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == (
        "<|im_start|>system\nBe grim.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def without_marks(**tokens: str) -> Any:
    """A tokenizer of single bytes and `<eos>`, without the marks of ChatML."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate([*alphabet, "<eos>"])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens)


def test_without_its_marks_an_answer_ends_with_the_end_of_text_token() -> None:
    tokenizer = without_marks(eos_token="<eos>")
    prepared = prepare(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, DataSettings(assistant_only_loss=True))
    labels = [label for label in prepared.dataset[0]["labels"] if label != -100]
    assert labels[-1] == tokenizer.eos_token_id
    assert len(labels) == len("Yo") + 1
    assert "stay ordinary text" in prepared.summary.notes[0]
    assert "<|im_end|>\n<|im_start|>assistant\nYo<eos>\n" in tokenizer.apply_chat_template(MESSAGES, tokenize=False)


def test_a_template_that_is_there_is_left_alone(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages }}"
    assert adopt_chatml(tokenizer) is None
    assert (tokenizer.chat_template, tokenizer.eos_token) == ("{{ messages }}", "<|endoftext|>")


def test_a_tokenizer_without_any_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no answer could end"):
        adopt_chatml(without_marks())


def test_without_marks_a_template_that_ends_no_answer_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"no end token \(train data, row 0\).*Set eos_token"):
        prepare(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, DataSettings(assistant_only_loss=True))


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_a_row_that_the_template_refuses_is_named(assistant_only_loss: bool, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('starts with an answer') }}{% endif %}" + CHATML
    )
    rows = [{"messages": MESSAGES}] * 5 + [{"messages": MESSAGES[2:]}] + [{"messages": MESSAGES}] * 5
    with pytest.raises(
        DataError, match=r"1 of 11 rows.*\n.*refused by the chat template \(train data, row 5\).*starts wi"
    ):
        prepare(Dataset.from_list(rows), tokenizer, DataSettings(assistant_only_loss=assistant_only_loss))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": MESSAGES, "tools": '[{"type": "function", "function": {"name": "f"}}]'}, "has no tools"),
        ({"messages": [{**MESSAGES[2], "reasoning_content": "Hm"}]}, "only role and content"),
        ({"messages": [{**MESSAGES[2], "tool_calls": [{"function": {"name": "f"}}]}]}, "only role and content"),
        ({"messages": MESSAGES, "tools": "[{"}, "is not JSON"),
    ],
)
def test_the_built_in_template_drops_nothing_silently(row: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=said):
        prepare(Dataset.from_list([row]), tokenizer, DataSettings())
