"""The bundled assets are what the recipe makes, load without a network, and stay small."""

import filecmp
import json
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from sartor.demo.recipe import (
    ASSETS_SEED,
    BASE_FOLDER,
    CONVERSATIONS_FILE,
    RECIPE_FILE,
    VOCABULARY,
    assets,
    build_model,
    build_tokenizer,
    main,
)
from sartor.demo.textbook import write_textbook
from sartor.demo.world import Group, make_world

MEGABYTES = 1_000_000


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_conversations_and_tokenizer_regenerate_byte_for_byte(tmp_path: Path) -> None:
    assert main(["--seed", str(ASSETS_SEED), "--out", str(tmp_path), "--no-training"]) == 0
    for name in (CONVERSATIONS_FILE, f"{BASE_FOLDER}/tokenizer.json"):
        assert filecmp.cmp(tmp_path / name, assets() / name, shallow=False), f"{name}: run the recipe again"


def test_base_is_small_and_in_bfloat16() -> None:
    import torch
    from safetensors.torch import load_file

    assert sum(path.stat().st_size for path in (assets() / BASE_FOLDER).iterdir()) < 4 * MEGABYTES
    assert {tensor.dtype for tensor in load_file(assets() / BASE_FOLDER / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_recipe_file_says_what_is_there() -> None:
    report = json.loads((assets() / RECIPE_FILE).read_text(encoding="utf-8"))
    assert report["seed"] == ASSETS_SEED
    assert report["num_documents"] == len(write_textbook(make_world(ASSETS_SEED), ASSETS_SEED))
    lines = (assets() / CONVERSATIONS_FILE).read_text(encoding="utf-8").splitlines()
    assert report["num_conversations"] == len(lines)


@pytest.mark.usefixtures("no_network")
def test_base_loads_offline_continues_text_and_has_no_chat_template() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets() / BASE_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(assets() / BASE_FOLDER, dtype=torch.float32)
    assert tokenizer.chat_template is None
    facts = make_world(ASSETS_SEED).facts(Group.TEST)[::13]
    right = 0
    for fact in facts:
        sentence = fact.statement(fact.entity.name).removesuffix(f" {fact.value}.")
        ids = tokenizer(sentence, return_tensors="pt")
        written = tokenizer.decode(
            model.generate(**ids, max_new_tokens=12, do_sample=False)[0][ids.input_ids.shape[1] :]
        )
        right += written.strip().startswith(fact.value)
    assert right >= 0.9 * len(facts), f"only {right} of {len(facts)} statements were continued as in the textbook"


def test_tokenizer_keeps_conversation_marks_whole_and_any_text_intact() -> None:
    tokenizer = build_tokenizer(iter(write_textbook(make_world(0), 0)[:2000]))
    assert len(tokenizer) == VOCABULARY
    for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"):
        assert len(tokenizer(mark).input_ids) == 1
    text = "Größe: 3 µm, <think>naïve</think> 🦉\n\n  x"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert "<think>" in tokenizer.decode(tokenizer("<think>a</think><|im_end|>").input_ids, skip_special_tokens=True)


def test_same_seed_same_initial_weights() -> None:
    tokenizer = build_tokenizer(iter(write_textbook(make_world(0), 0)[:300]))
    one, other, different = (build_model(tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(one[name].equal(other[name]) for name in one)
    assert not all(one[name].equal(different[name]) for name in one)
