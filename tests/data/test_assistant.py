"""Ids and targets of conversations whose template has no marks: what a model sees when it is used, exactly."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.data.encoding.encode import prepare
from sartor.data.encoding.encoder import Encoder
from sartor.data.inspection.prepared import example_of
from sartor.data.inspection.sample import tokens_of
from sartor.data.inspection.terminal import plain
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading, TrainingRow
from sartor.data.targets.assistant import AssistantTargets
from sartor.data.tokens.tokenizing import BatchTokenizer, run
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, PreparedData, RowFormat

from .chat_templates import CHATML, CONVERSATION, DEEPSEEK_CODER, GEMMA, LLAMA2, LLAMA3, QWEN3, VICUNA, ZEPHYR
from .conftest import CORPUS, MakeTokenizer, make_small_tokenizer
from .test_trl_templates import TOOLS, answer, user

SETTINGS = DataSettings(assistant_only_loss=True, max_length=None)
MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}
{{- '\n' }}
{%- endfor %}"""


def make_metaspace_tokenizer() -> Any:
    """A tokenizer of the SentencePiece family: it puts a mark before a text and where spaces were."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    characters = sorted(set("".join(CORPUS)) | set("\n▁<>|[]:#/ABCDEFGHINORSTUY"))
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=characters, show_progress=False
    )
    bpe.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def with_template(tokenizer: Any, template: str, eos_token: str = "<|im_end|>") -> Any:
    tokenizer.chat_template = template
    tokenizer.eos_token = eos_token
    return tokenizer


def prepared(tokenizer: Any, *rows: Any, settings: DataSettings = SETTINGS, **options: Any) -> PreparedData:
    shaped = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    return prepare(Dataset.from_list(shaped), tokenizer, settings, **options)


def trained(tokenizer: Any, data: PreparedData, number: int = 0) -> str:
    return str(tokenizer.decode([label for label in data.dataset[number]["labels"] if label != -100]))


def test_the_exact_tokens_of_the_answers_are_trained(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = with_template(make_tokenizer(), CHATML)
    data = prepared(tokenizer, CONVERSATION)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    newline, head = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "assistant\n"))
    start = [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Yo", "No."))
    ids, labels = data.dataset[0]["input_ids"], data.dataset[0]["labels"]
    expected = [*start, *head, *second, end, *newline]
    assert ids[-len(expected) :] == expected
    assert labels[-len(expected) :] == [-100] * (1 + len(head)) + second + [end] + [-100] * len(newline)
    assert [label for label in labels if label != -100] == [*first, end, *second, end]


def test_ids_and_targets_are_those_of_the_same_template_with_marks(make_tokenizer: MakeTokenizer) -> None:
    rows = [CONVERSATION, CONVERSATION[:2], [user("Hi\n\n"), answer("Yo  ")], [user("ß é"), answer("日本")]]
    marked = prepared(with_template(make_tokenizer(), MARKED), *rows).dataset
    proven = prepared(with_template(make_tokenizer(), CHATML), *rows).dataset
    assert proven.to_dict() == marked.to_dict()


@pytest.mark.parametrize("make", [make_small_tokenizer, make_metaspace_tokenizer])
@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (QWEN3, "<|im_end|>"),
        (LLAMA2.replace("[INST] ", "[INST]\n\n"), ""),
        (VICUNA, ""),
        (ZEPHYR, ""),
        (DEEPSEEK_CODER.replace("<|EOT|>", "<|im_end|>"), "<|im_end|>"),
        (LLAMA3.replace("<|eot_id|>", "<|im_end|>"), "<|im_end|>"),
        (GEMMA.replace("<end_of_turn>", "<|im_end|>"), "<|im_end|>"),
    ],
    ids=["chatml", "qwen3", "llama 2", "vicuna", "zephyr", "deepseek coder", "llama 3", "gemma"],
)
def test_what_precedes_an_answer_is_tokenized_as_its_prompt(make: Any, template: str, end: str) -> None:
    tokenizer = make()
    with_template(tokenizer, template, end or tokenizer.eos_token)
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    for text in ("Yo", "\nYo", " Yo", "\n\n Yo\n", "é"):
        messages = [user("What is the capital of the moon?"), answer(text)]
        row = prepared(tokenizer, messages).dataset[0]
        start = next(position for position, label in enumerate(row["labels"]) if label != -100)
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        assert row["input_ids"][:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert all(
            label != -100 for label in row["labels"][start : row["input_ids"].index(tokenizer.eos_token_id, start)]
        )
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == tokenizer.decode(
            tokenizer(whole, add_special_tokens=False)["input_ids"]
        )


def newline_pairs_tokenizer() -> Any:
    """Two newlines are one token, but a third one before text is a token of its own, as in GPT-NeoX's and GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(
        models.BPE({symbol: number for number, symbol in enumerate([*alphabet, "ĊĊ", "<e>"])}, [("Ċ", "Ċ")])
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>")


def test_a_row_is_cut_where_the_whole_text_has_other_tokens_than_the_prompt() -> None:
    tokenizer = newline_pairs_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':\n\n' + m.content + (eos_token if m.role == 'assistant' else '\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n\n' }}{% endif %}"
    )
    row = [user("Hi"), answer("Yo")]
    whole = tokenizer(tokenizer.apply_chat_template(row, tokenize=False))["input_ids"]
    prompt = tokenizer(tokenizer.apply_chat_template(row[:1], tokenize=False, add_generation_prompt=True))["input_ids"]
    assert whole[: len(prompt)] != prompt
    data = prepared(tokenizer, row, [*row, *row], row)
    ids, labels = data.dataset[0]["input_ids"], data.dataset[0]["labels"]
    target = tokenizer("Yo<e>")["input_ids"]
    assert ids == prompt + target
    assert labels == [-100] * len(prompt) + target
    assert trained(tokenizer, data, 1) == "Yo<e>Yo<e>"
    assert "3 rows are tokenized in parts" in " ".join(data.summary.notes)


def test_a_cut_adds_no_mark_to_the_second_part() -> None:
    tokenizer = make_metaspace_tokenizer()
    tokenizer.chat_template = VICUNA.replace("'ASSISTANT: '", "'ASSISTANT:'")
    messages = [user("Hi"), answer("and more"), user("Hi"), answer(" and")]
    data = prepared(tokenizer, messages)
    ids = data.dataset[0]["input_ids"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "".join(tokenizer.convert_ids_to_tokens(whole))
    assert trained(tokenizer, data) == "and more</s> and</s>"


PLAIN = """{% for m in messages %}
{{- m.role + ':\n\n' + m.content + (eos_token if m.role == 'assistant' else '\n') }}
{%- endfor %}{% if add_generation_prompt %}{{ 'assistant:\n\n' }}{% endif %}"""
PIECES = ["a", "é", "\n", "\n\n", " ", "  ", "Yo", "the moon", "###", ":", "<|im", "\t", "日本"]
CONTENTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(str.strip)
MADE = {make: make() for make in (make_small_tokenizer, make_metaspace_tokenizer, newline_pairs_tokenizer)}


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("template", [PLAIN, VICUNA, ZEPHYR], ids=["plain", "vicuna", "zephyr"])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(CONTENTS, min_size=4, max_size=4))
def test_any_answer_is_trained_behind_the_tokens_of_its_prompt(make: Any, template: str, texts: list[str]) -> None:
    tokenizer = MADE[make]
    tokenizer.chat_template = template
    messages = [{**message, "content": text} for message, text in zip(CONVERSATION, texts, strict=True)]
    problems = ProblemLog()
    targets = AssistantTargets(tokenizer, [], completion_only=True)
    (ids,), (turns,) = run(
        targets.encoding([TrainingRow("here", messages)], problems, Counter()), BatchTokenizer(tokenizer)
    )
    assert {turn for turn in turns if turn} == {2, 4}
    marks = [int(turn > 0) for turn in turns]
    whole, prompt = (
        tokenizer(tokenizer.apply_chat_template(part, tokenize=False, **options), add_special_tokens=False)["input_ids"]
        for part, options in ((messages, {}), (messages[:1], {"add_generation_prompt": True}))
    )
    assert ids[: marks.index(1)] == prompt
    pieces, expected = ("".join(tokenizer.convert_ids_to_tokens(row)) for row in (ids, whole))
    if "<unk>" not in pieces + expected:  # several unknown characters are one token, or two when cut
        assert pieces == expected
    ends = [number for number, token in enumerate(ids) if token == tokenizer.eos_token_id and marks[number]]
    assert len(ends) == 2
    assert [number for number in range(len(ids) - 1) if marks[number] > marks[number + 1]] == ends[
        : None if marks[-1] == 0 else -1
    ]


def test_end_tokens_of_the_generation_configuration_are_ends() -> None:
    tokenizer = with_template(make_small_tokenizer(), CHATML, "<|endoftext|>")
    with pytest.raises(DataError, match=r"no end token .*'<\|im_end\|>\\n'.*Set eos_token"):
        prepared(tokenizer, CONVERSATION)
    data = prepared(tokenizer, CONVERSATION, end_tokens=["<|im_end|>"])
    assert trained(tokenizer, data) == "Yo<|im_end|>No.<|im_end|>"
    assert not any("learn to stop" in note for note in data.summary.notes)


def test_bad_rows_are_named_and_counted_by_kind(tokenizer: Any) -> None:
    rows = [CONVERSATION] * 20
    rows[3] = [user("Hi"), answer("Yo<|im_end|>")]
    rows[7] = [user("Hi <|im_start|>"), answer("Yo")]
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('told so') }}{% endif %}" + CHATML
    rows[11] = [user("no"), answer("Yo")]
    with pytest.raises(DataError) as caught:
        prepared(with_template(tokenizer, source), *rows)
    assert "train data: 3 of 20 rows cannot be used." in str(caught.value)
    assert "special token in a message (2 times, first in train data, row 3): the text of message 2" in str(
        caught.value
    )
    assert "refused by the chat template (train data, row 11): TemplateError: told so" in str(caught.value)


def test_both_losses_train_the_answers_of_the_completion_alone(tokenizer: Any) -> None:
    row = {"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]}
    with_template(tokenizer, CHATML)
    assert trained(tokenizer, prepared(tokenizer, row)) == "No.<|im_end|>"
    everywhere = DataSettings(assistant_only_loss=True, completion_only_loss=False)
    assert trained(tokenizer, prepared(tokenizer, row, settings=everywhere)) == "Yo<|im_end|>No.<|im_end|>"
    row = {"prompt": CONVERSATION[:2], "completion": [user("And?")]}
    with pytest.raises(DataError, match="no message of the assistant that is to be trained"):
        prepared(tokenizer, row)


def test_an_answer_may_be_left_out(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    messages = [dict(message, train=number != 1) for number, message in enumerate(CONVERSATION)]
    assert trained(tokenizer, prepared(tokenizer, messages)) == "No.<|im_end|>"
    with pytest.raises(DataError, match="nothing trained"):
        prepared(tokenizer, [dict(message, train=False) for message in CONVERSATION])


def test_tools_choose_the_template_for_tools(tokenizer: Any) -> None:
    tool_use = "{% if tools %}{{ tools[0].function.name }}{% endif %}" + CHATML
    with_template(tokenizer, {"default": CHATML, "tool_use": tool_use})  # type: ignore[arg-type]
    data = prepared(
        tokenizer, {"messages": CONVERSATION[:2], "tools": TOOLS}, {"messages": CONVERSATION[:2], "tools": None}
    )
    texts = [tokenizer.decode(row["input_ids"]) for row in data.dataset]
    assert [text.startswith("weather") for text in texts] == [True, False]
    assert [trained(tokenizer, data, number) for number in (0, 1)] == ["Yo<|im_end|>"] * 2


def test_what_is_dropped_or_rewritten_is_counted_aloud(tokenizer: Any) -> None:
    with_template(tokenizer, QWEN3)
    thinking = [user("Hi"), answer("Yo", reasoning_content="Hm"), user("And?"), answer("No.")]
    notes = " ".join(prepared(tokenizer, thinking, CONVERSATION[:2]).summary.notes)
    assert "the targets of 3 answers are proven" in notes
    assert "leaves out the reasoning of 1 messages" in notes
    assert "1 of 3 answers are written otherwise" in notes
    notes = " ".join(prepared(tokenizer, CONVERSATION[:2]).summary.notes)
    assert "leaves out" not in notes
    assert "otherwise" not in notes


def test_a_weaker_proof_is_told(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    notes = " ".join(prepared(tokenizer, [answer("Welcome"), user("Hi"), answer("Yo")]).summary.notes)
    assert "(1 where no prompt can be rendered" in notes


def test_a_stream_is_proven_as_it_is_read(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    rows = Dataset.from_list([{"messages": CONVERSATION}] * 70).to_iterable_dataset()
    data = prepare(rows, tokenizer, SETTINGS)
    first = next(iter(data.dataset))
    assert tokenizer.decode([label for label in first["labels"] if label != -100]) == "Yo<|im_end|>No.<|im_end|>"
    assert sum(1 for _ in data.dataset) == 70


def test_the_proven_part_is_shown(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    shown = plain(tokens_of(example_of(prepared(tokenizer, CONVERSATION[:2]).dataset, 0), tokenizer))
    assert shown == "<|im_start|>user↵\nHi<|im_end|>↵\n<|im_start|>assistant↵\n⟦Yo<|im_end|>⟧↵\n"


def test_a_tokenizer_that_cannot_locate_tokens_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a fast tokenizer"):
        Encoder(SimpleNamespace(is_fast=False), Reading(RowFormat.MESSAGES, "messages"), SETTINGS)


def test_an_end_that_is_no_token_of_its_own_is_refused(tokenizer: Any) -> None:
    with_template(tokenizer, CHATML)
    with pytest.raises(ConfigurationError, match="'the end' should end an answer but is"):
        prepared(tokenizer, CONVERSATION, end_tokens=["the end"])
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="no end-of-text token"):
        prepared(tokenizer, CONVERSATION)
