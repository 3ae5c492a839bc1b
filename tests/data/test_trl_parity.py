"""Ids, labels, block lengths and row order equal those of trl's trainer, row for row."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.templates.rendering import CHATML
from sartor.records import DataSettings

from .conftest import TUTORIAL_TEMPLATE, MakeTokenizer

Rows = list[dict[str, Any]]


def words(random_: random.Random, low: int, high: int) -> str:
    vocabulary = [
        "what is",
        "the capital",
        "of",
        "moon",
        "rubber",
        "boots",
        "72",
        "naïve",
        "漢字",
        "<think>",
        "Sigh.\n",
    ]
    return " ".join(random_.choice(vocabulary) for _ in range(random_.randint(low, high)))


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def conversations(count: int = 30) -> Rows:
    r = random.Random(1)
    return [
        {"messages": [m for _ in range(r.randint(1, 3)) for m in (user(words(r, 1, 12)), assistant(words(r, 1, 20)))]}
        for _ in range(count)
    ]


def prompts(count: int = 30) -> Rows:
    r = random.Random(2)
    return [{"prompt": words(r, 1, 30) + " ", "completion": words(r, 1, 12)} for _ in range(count)]


def conversational_prompts(count: int = 30) -> Rows:
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in conversations(count)]


def texts(count: int = 30) -> Rows:
    r = random.Random(3)
    return [{"text": words(r, 1, 40) + r.choice(["", "<|endoftext|>"])} for _ in range(count)]


def sharegpt() -> Rows:
    return [
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
        for row in conversations()
    ]


def tokenized(columns: tuple[str, ...]) -> Rows:
    r = random.Random(4)
    rows = []
    for _ in range(20):
        length = r.randint(2, 40)
        ids = [r.randrange(300) for _ in range(length)]
        values = {
            "input_ids": ids,
            "labels": [token if r.random() < 0.5 else -100 for token in ids],
            "assistant_masks": [r.randint(0, 1) for _ in ids],
        }
        rows.append({column: values[column] for column in columns})
    return rows


def with_tools() -> Rows:
    tools = '[{"type": "function", "function": {"name": "weigh", "parameters": {}}}]'
    rows = conversations(8)
    return [
        {
            **row,
            "tools": tools if number % 3 else None,
            "chat_template_kwargs": {"mood": "grim" if number % 2 else "gay"},
        }
        for number, row in enumerate(rows)
    ]


MOODY_TEMPLATE = "{{ mood }}{% if tools %}{{ tools | tojson }}{% endif %}" + TUTORIAL_TEMPLATE

CASES: dict[str, tuple[Callable[[], Rows], str | None, dict[str, Any]]] = {
    "messages, tutorial": (conversations, TUTORIAL_TEMPLATE, {}),
    "messages, chatml": (conversations, CHATML, {}),
    "messages, assistant only": (conversations, CHATML, {"assistant_only_loss": True}),
    "messages, tools and keywords": (with_tools, MOODY_TEMPLATE, {}),
    "from and value": (sharegpt, TUTORIAL_TEMPLATE, {}),
    "prompt, completion": (prompts, None, {}),
    "prompt, completion, all trained": (prompts, None, {"completion_only_loss": False}),
    "prompt, completion as messages": (conversational_prompts, TUTORIAL_TEMPLATE, {}),
    "prompt, completion as messages, both masks": (conversational_prompts, CHATML, {"assistant_only_loss": True}),
    "assistant mask without completion mask": (
        conversational_prompts,
        CHATML,
        {"assistant_only_loss": True, "completion_only_loss": False},
    ),
    "text": (texts, None, {}),
    "keep_start": (conversations, TUTORIAL_TEMPLATE, {"max_length": 40}),
    "keep_start drops rows": (prompts, None, {"max_length": 24}),
    "keep_end": (conversations, TUTORIAL_TEMPLATE, {"max_length": 40, "truncation_mode": "keep_end"}),
    "no limit": (conversations, TUTORIAL_TEMPLATE, {"max_length": None}),
    "shuffled": (conversations, TUTORIAL_TEMPLATE, {"shuffle_dataset": True, "seed": 7}),
    "bfd": (lambda: conversations(60), TUTORIAL_TEMPLATE, {"packing": True, "max_length": 128}),
    "bfd cuts": (lambda: prompts(60), None, {"packing": True, "max_length": 24}),
    "bfd_split": (lambda: texts(60), None, {"packing": True, "packing_strategy": "bfd_split", "max_length": 32}),
    "wrapped": (lambda: texts(60), None, {"packing": True, "packing_strategy": "wrapped", "max_length": 32}),
    "bfd, shuffled": (
        lambda: prompts(60),
        None,
        {"packing": True, "max_length": 64, "shuffle_dataset": True, "seed": 3},
    ),
    "tokenized": (lambda: tokenized(("input_ids",)), None, {"max_length": 16}),
    "tokenized, labels": (lambda: tokenized(("input_ids", "labels")), None, {"max_length": 16}),
    "tokenized, mask": (lambda: tokenized(("input_ids", "assistant_masks")), None, {"max_length": 16}),
}


def trl_columns(rows: Rows, tokenizer: Any, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    args = SFTConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, **options)
    trainer = SFTTrainer(
        LlamaForCausalLM(config), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    return trainer.train_dataset[:]


@pytest.mark.parametrize("case", CASES)
def test_prepared_rows_are_trls(case: str, make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    from datasets import Dataset

    make_rows, template, options = CASES[case]
    tokenizers = [make_tokenizer(), make_tokenizer()]
    for tokenizer in tokenizers:
        tokenizer.chat_template = template
        if template is not None:
            tokenizer.eos_token = "<|im_end|>"
    prepared = prepare(Dataset.from_list(make_rows()), tokenizers[0], DataSettings(**options), pack=pack)
    expected = trl_columns(make_rows(), tokenizers[1], tmp_path, options)
    ours = prepared.dataset[:]
    assert ours["input_ids"] == expected["input_ids"]
    assert ours["labels"] == expected["labels"]
    assert ours.get("seq_lengths") == expected.get("seq_lengths")
    assert any(label != -100 for row in ours["labels"] for label in row)


@pytest.mark.parametrize("case", ["messages, tutorial", "keep_start drops rows", "bfd", "bfd_split", "wrapped"])
def test_a_stream_gives_the_same_rows(case: str, tokenizer: Any) -> None:
    from datasets import Dataset

    make_rows, template, options = CASES[case]
    tokenizer.chat_template = template
    dataset = Dataset.from_list(make_rows())
    settings = DataSettings(**options)
    stream = prepare(dataset.to_iterable_dataset(), tokenizer, settings, pack=pack)
    assert list(stream.dataset) == list(prepare(dataset, tokenizer, settings, pack=pack).dataset)
    assert stream.summary.num_examples == 0
    assert any("stream" in note for note in stream.summary.notes)
