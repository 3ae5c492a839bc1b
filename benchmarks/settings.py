"""Model, tokenizer and rows that benchmarks use where none are given: embedded ones, so that anyone can repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""A Llama of 49 million parameters with the shape of a small SmolLM2."""

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def conversations(path: str | None) -> list[dict[str, Any]]:
    """Rows with `messages`, made of question, reasoning and answer as the tutorial does."""
    file = Path(path) if path else embedded() / "conversations.jsonl"
    rows = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            answer = f"<think>{row['reasoning']}</think> {row['answer']}"
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": row["question"]},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
    return rows


def load_tokenizer(path: str | None, model: str | None = None) -> Any:
    """A tokenizer with a chat template; the tutorial's markers are added where they are missing."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path and path.endswith(".json"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, eos_token="<|endoftext|>")
    else:
        tokenizer = AutoTokenizer.from_pretrained(path or model or str(embedded() / "base"))
    if "<|im_end|>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML
    return tokenizer


def embedded() -> Path:
    """The package's own base model and conversations."""
    import sartor.demo

    return Path(sartor.demo.__file__).parent / "assets"
