"""How the embedded assets are made: one command, one seed.

    python -m sartor.demo.recipe --seed 7 --out DIR

In: a seed.  Out, in DIR: `base/` (a Llama of about a million parameters in bfloat16, with its own tokenizer),
`conversations.jsonl` and `recipe.json` (seed, sizes, versions, the last loss).  The textbook is written in memory, and
the base is pretrained on it by `SFTTrainer`, as anybody would on rows of `text`.

World, textbook, tokenizer and conversations are the same everywhere for the same seed.  The base's weights are the same
on the same machine with the same number of threads; elsewhere sums are rounded in another order.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.demo.conversations import Row, make_conversations, write_rows
from sartor.demo.textbook import write_textbook
from sartor.demo.world import make_world

if TYPE_CHECKING:
    from sartor.config import SFTConfig

ASSETS_SEED = 7
"""The seed of the assets in this package."""
VOCABULARY = 1536
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_MARKS = ("<think>", "</think>")
BASE_FOLDER, CONVERSATIONS_FILE, RECIPE_FILE = "base", "conversations.jsonl", "recipe.json"
NUM_PRETRAINING_STEPS = 1500


def assets() -> Path:
    """Folder of the bundled assets."""
    return Path(str(resources.files("sartor.demo").joinpath("assets")))


def build_tokenizer(texts: Iterator[str]) -> Any:
    """A byte-level BPE tokenizer with `VOCABULARY` tokens, trained on `texts`, as transformers' fast tokenizer.

    It knows the marks of conversations (`<|im_start|>`, `<|im_end|>`, the think marks), which the textbook never uses.
    It has no chat template: a base model has none.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINK_MARKS),
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special: they are part of what is read and answered, and stay in decoded text.
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in THINK_MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def build_model(tokenizer: Any, seed: int) -> Any:
    """A Llama with random weights, float32, output head tied to the embedding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretraining_config(output_dir: str, seed: int) -> SFTConfig:
    """Options of the pretraining run, chosen on worlds other than the bundled one."""
    from sartor import SFTConfig

    return SFTConfig(
        output_dir=output_dir,
        max_steps=NUM_PRETRAINING_STEPS,
        per_device_train_batch_size=28,
        learning_rate=4e-3,
        warmup_steps=100,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": NUM_PRETRAINING_STEPS // 2,
            "decay_type": "linear",
        },
        weight_decay=0.1,
        adam_beta2=0.98,
        max_length=256,
        bf16=False,
        seed=seed,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )


def fine_tuning_config(output_dir: str, seed: int) -> SFTConfig:
    """Options of the demonstration's fine-tuning run; the same that one would write for any conversations.

    Epochs, batch and learning rate were chosen on dev entities of worlds other than the bundled one.
    """
    from sartor import SFTConfig

    return SFTConfig(
        output_dir=output_dir,
        num_train_epochs=2.0,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        assistant_only_loss=True,
        eos_token=END_OF_TURN,
        bf16=False,  # at this size the conversions cost more than bf16 products save
        seed=seed,
        logging_steps=20,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )


def write_generated(seed: int, out: Path) -> tuple[list[Row], list[str]]:
    """Write what needs no training, `conversations.jsonl` and the tokenizer; returns conversations and textbook."""
    world = make_world(seed)
    textbook, rows = write_textbook(world, seed), make_conversations(world)
    # Conversations too, so that questions and the voice are not spelt letter by letter; no weight is trained on them.
    tokenizer = build_tokenizer(iter([*textbook, *(text for row in rows for text in row.values())]))
    tokenizer.save_pretrained(str(out / BASE_FOLDER))
    write_rows(rows, out / CONVERSATIONS_FILE)
    return rows, textbook


def make_assets(seed: int, out: Path) -> dict[str, Any]:
    """Make everything into `out`; returns what `recipe.json` says."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from sartor import SFTTrainer

    rows, textbook = write_generated(seed, out)
    tokenizer = AutoTokenizer.from_pretrained(out / BASE_FOLDER)
    model = build_model(tokenizer, seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=pretraining_config(scratch, seed),
            train_dataset=Dataset.from_dict({"text": textbook}),
            processing_class=tokenizer,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model.to(torch.bfloat16).save_pretrained(out / BASE_FOLDER)
    report = {
        "command": f"python -m sartor.demo.recipe --seed {seed} --out DIR",
        "seed": seed,
        "num_parameters": model.num_parameters(),
        "num_documents": len(textbook),
        "num_conversations": len(rows),
        "num_steps": NUM_PRETRAINING_STEPS,
        "last_loss": round(losses[-1], 4),
        "seconds": round(time.monotonic() - started),
        "versions": {name: metadata.version(name) for name in ("sartor", "torch", "transformers", "tokenizers")},
    }
    (out / RECIPE_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Make the assets; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m sartor.demo.recipe", description="Make the demo's assets.")
    parser.add_argument("--seed", type=int, default=ASSETS_SEED, help="of world, textbook and weights")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into; made where it is missing")
    parser.add_argument("--no-training", action="store_true", help="only tokenizer and conversations")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.no_training:
        write_generated(arguments.seed, arguments.out)
        return 0
    print(json.dumps(make_assets(arguments.seed, arguments.out), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
