"""A tokenizer that is made here, and the published one of GPT-NeoX where its file is at hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
NEOX = SHARED_DATA / "neox_tokenizer.json"

TUTORIAL_TEMPLATE = """{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

CORPUS = [
    "What is the capital of the moon? The moon has no capital, and no one has ever asked it.",
    "Sigh. It smells of rubber boots. I have had my coat cleaned twice, user and assistant alike.",
    "How many clips did she sell in April and May? She sold 48 + 24 = 72 clips.",
]


def make_small_tokenizer(*, begins_texts: bool = False) -> Any:
    """A byte-level BPE tokenizer of 400 entries, without chat template; eos is <|endoftext|>.

    With `begins_texts` it puts <|endoftext|> before every text, as the tokenizers of Llama and Gemma do with theirs.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if begins_texts:
        begin = ("<|endoftext|>", bpe.token_to_id("<|endoftext|>"))
        bpe.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def make_neox_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(NEOX), eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


MakeTokenizer = Callable[[], Any]


@pytest.fixture
def tokenizer() -> Any:
    return make_small_tokenizer()


@pytest.fixture(params=["begins texts", "neox"])
def make_tokenizer(request: pytest.FixtureRequest) -> MakeTokenizer:
    """Makes a fresh tokenizer at each call: preparing data may set its template."""
    if request.param == "begins texts":
        return partial(make_small_tokenizer, begins_texts=True)
    if not NEOX.is_file():
        pytest.skip(f"{NEOX} is not there")
    return make_neox_tokenizer
