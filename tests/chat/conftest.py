"""A tiny model that has learned a few conversations by heart, so that tests can assert exact text.

Byte-level tokens, one per byte of UTF-8: every character beyond ASCII is spread over several tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

CONTEXT = 320
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
LEARNED: list[list[tuple[str, str]]] = [
    [(USER, "hi"), (ASSISTANT, "<think>é?</think> na 😀!")],
    [(USER, "name?"), (ASSISTANT, "unknown")],
    [(USER, "I am Ada"), (ASSISTANT, "ok")],
    [(USER, "I am Ada"), (ASSISTANT, "ok"), (USER, "name?"), (ASSISTANT, "Ada")],
    [(SYSTEM, "Bob"), (USER, "name?"), (ASSISTANT, "Bob")],
    [(USER, "sing"), (ASSISTANT, "la " * 24)],
]


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def user(text: str) -> list[dict[str, str]]:
    return messages((USER, text))


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(t, special=True) for t in ("<|pad|>", "<|im_start|>", "<|im_end|>", "<think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    return tokenizer


def make_model(num_tokens: int, seed: int = 0, **settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=num_tokens, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, **sizes | settings
    )
    return LlamaForCausalLM(config).eval()


def learn(model: Any, tokenizer: Any, conversations: list[list[tuple[str, str]]], num_steps: int = 160) -> None:
    """Until every conversation's last answer is known by heart; the song is left without an end."""
    rows = []
    for turns in conversations:
        prompt = tokenizer.apply_chat_template(messages(*turns[:-1]), add_generation_prompt=True, return_dict=True)
        prompt_ids = prompt["input_ids"]
        answer_ids = tokenizer(turns[-1][1])["input_ids"]
        if not turns[-1][1].startswith("la "):
            answer_ids = [*answer_ids, tokenizer.eos_token_id]
        rows.append((prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0)
    model.train()
    for _ in range(num_steps):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert loss.item() < 0.02, f"the test's model has not learned its conversations: loss {loss.item():.3f}"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def learned_model(tokenizer: Any) -> Any:
    model = make_model(len(tokenizer))
    learn(model, tokenizer, LEARNED)
    return model


@pytest.fixture(scope="session")
def learned_folder(learned_model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "learned"
    learned_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: random weights, no chat template."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    tokenizer = make_tokenizer(template=None)
    make_model(len(tokenizer), seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
