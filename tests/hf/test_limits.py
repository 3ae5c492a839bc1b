"""What a model can look up is read off the model, or off its configuration, and rows are held against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset

from sartor import SFTTrainer
from sartor.engine.traits import num_positions
from sartor.errors import ConfigurationError, DataError
from tests.hf import tiny

SMALL: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
HEADS: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
OPT: dict[str, Any] = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
TABLES: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**SMALL, **HEADS),
    "gptj": lambda: transformers.GPTJConfig(**SMALL, **HEADS, rotary_dim=4),
    "opt": lambda: transformers.OPTConfig(**SMALL, **OPT, num_attention_heads=2, max_position_embeddings=16),
}


def made(config: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_config(config)


def tokens(*ids: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [1, 2, 3]}, {"input_ids": list(ids)}]


@pytest.mark.parametrize("given", ["train", "eval", "by name", "unprepared"])
def test_a_row_with_an_id_that_the_embedding_lacks_is_named_before_training(given: str, tmp_path: Path) -> None:
    model: Any = tiny.make_model()
    number = model.get_input_embeddings().weight.shape[0]
    rows = Dataset.from_list(tokens(3, number))
    options: dict[str, Any] = {"train_dataset": rows}
    config: dict[str, Any] = {}
    name = "train"
    if given == "eval":
        options, name = {"train_dataset": tokens(3, number - 1), "eval_dataset": {"one": rows}}, "one"
    elif given == "by name":
        model.save_pretrained(tmp_path / "model")
        model = str(tmp_path / "model")
    elif given == "unprepared":
        config["dataset_kwargs"] = {"skip_prepare_dataset": True}
    with pytest.raises(DataError, match=rf"id outside the vocabulary \({name} data, row 1\)"):
        SFTTrainer(model, tiny.config(tmp_path, **config), processing_class=tiny.make_tokenizer(), **options)


def test_a_tokenizer_whose_end_token_the_embedding_lacks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"more{number}" for number in range(rows)])
    more = tiny.trainer(tmp_path / "never", model=model, processing_class=tokenizer)  # no row needs them
    assert more.train_dataset is not None
    tokenizer.eos_token = f"more{rows - 1}"
    with pytest.raises((ConfigurationError, DataError), match="resize_token_embeddings"):
        tiny.trainer(tmp_path / "end", model=model, processing_class=tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    tiny.trainer(tmp_path / "resized", model=model, processing_class=tokenizer, max_steps=1).train()


@pytest.mark.parametrize("kind", TABLES)
def test_a_document_beyond_the_positions_of_a_table_is_named(kind: str, tmp_path: Path) -> None:
    model = made(TABLES[kind]())
    model.save_pretrained(tmp_path / "model")
    given = {"processing_class": tiny.make_tokenizer(), "train_dataset": tokens(*[2] * 17)}
    for one in (model, str(tmp_path / "model")):
        with pytest.raises(DataError, match=r"(?s)\(train data, row 1\).*17 tokens.*max_length=16"):
            SFTTrainer(one, tiny.config(tmp_path / "run", max_length=None), **given)
    SFTTrainer(model, tiny.config(tmp_path / "run", max_length=16, max_steps=1), **given).train()


def test_positions_that_are_computed_have_no_end(tmp_path: Path) -> None:
    model = tiny.make_model(max_position_embeddings=16)
    assert num_positions(model) is None
    assert (
        num_positions(made(transformers.GPTNeoXConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)))
        is None
    )
    tiny.trainer(tmp_path, model=model, rows=tokens(*[2] * 17), max_steps=1).train()
