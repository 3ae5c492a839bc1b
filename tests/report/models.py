"""A model folder of a few kilobytes, as a run leaves it."""

from __future__ import annotations

import json
from pathlib import Path

VOCABULARY = {"<unk>": 0, "<|im_end|>": 1, "<|im_start|>": 2, "user": 3, "assistant": 4, "hello": 5, "there": 6}
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def make_model(folder: Path, seed: int = 0) -> Path:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_run(folder: Path) -> Path:
    """The model with everything beside it that must stay: rows, answers, pickles, states, checkpoints."""
    make_model(folder)
    (folder / "metrics.jsonl").write_text('{"loss": 2.0, "step": 10}\n')
    for name in ("training_args.bin", "optimizer.pt", "optimizer.safetensors", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"private state")
    for name in ("train.jsonl", "samples.jsonl", "sample_answers.json", "plan.json", "configuration.json", "train.py"):
        (folder / name).write_text(json.dumps({"text": "a private row"}))
    make_checkpoint(folder / "checkpoint-10", step=10, seed=1)
    (folder / "runs").mkdir()
    (folder / "runs" / "events.out.tfevents").write_bytes(b"a private row")
    return folder


def make_checkpoint(folder: Path, *, step: int, seed: int) -> Path:
    make_model(folder, seed)
    (folder / "optimizer.safetensors").write_bytes(b"private state")
    state = {
        "global_step": step,
        "best_model_checkpoint": f"{folder.parent}/checkpoint-5",
        "log_history": [{"loss": 2.0, "step": step, "sample": "a private row"}],
    }
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder
