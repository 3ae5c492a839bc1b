from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.chat import loading
from sartor.chat.loading import choose_device, computes_well, parse_dtype
from sartor.chat.sample import SamplingOptions, load
from sartor.errors import ModelError
from tests.chat.conftest import make_model, make_tokenizer, user

GREEDY = SamplingOptions(greedy=True, max_new_tokens=24)
CPU = torch.device("cpu")


def lora_on(base: Any, seed: int = 1) -> Any:
    """An adapter whose weights are far from zero, so that it changes answers."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return adapted.eval()


@pytest.fixture
def adapter_folder(learned_folder: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM

    adapted = lora_on(AutoModelForCausalLM.from_pretrained(learned_folder))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_saved_model_answers_as_the_one_in_memory(learned_folder: Path) -> None:
    speaker = load(learned_folder)
    assert speaker.answer(user("hi"), GREEDY) == "<think>é?</think> na 😀!"
    assert speaker.notes == ()
    assert not speaker.model.training


def test_an_adapters_folder_answers_as_the_merged_model(
    adapter_folder: Path, learned_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    speaker = load(adapter_folder)
    assert speaker.notes == (f"an adapter on {learned_folder}",)
    merged = load(adapter_folder).model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    questions = [user(text) for text in ("hi", "name?", "something else")]
    answers = [speaker.answer(question, GREEDY) for question in questions]
    assert answers == [load(tmp_path / "merged").answer(question, GREEDY) for question in questions]
    assert answers == speaker.answers(questions, GREEDY)
    assert answers[0] != load(learned_folder).answer(questions[0], GREEDY), "the adapter changes nothing"


def test_an_adapter_brings_its_own_tokenizer_and_the_tokens_it_gained(
    adapter_folder: Path, learned_folder: Path
) -> None:
    assert load(adapter_folder).tokenizer.chat_template == load(learned_folder).tokenizer.chat_template
    own = make_tokenizer(template="{{ messages[-1].content }}<|new|>")
    own.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    own.save_pretrained(adapter_folder)
    speaker = load(adapter_folder)
    assert speaker.read(user("a")).input_ids == (own("a")["input_ids"][0], len(own) - 1)
    assert speaker.model.get_input_embeddings().weight.shape[0] == len(own)
    assert isinstance(speaker.answer(user("a"), GREEDY), str)


def test_an_adapter_finds_a_base_that_lies_relative_to_it_and_can_be_given_another(
    adapter_folder: Path, learned_folder: Path
) -> None:
    expected = load(adapter_folder).answer(user("hi"), GREEDY)
    name_base(adapter_folder, "../base")
    with pytest.raises(ModelError, match=r"adapter of the model in \.\./base, and there is no such folder.*--base"):
        load(adapter_folder)
    assert load(adapter_folder, base=learned_folder).answer(user("hi"), GREEDY) == expected
    shutil.copytree(learned_folder, adapter_folder.parent / "base")
    assert load(adapter_folder).answer(user("hi"), GREEDY) == expected


def name_base(adapter_folder: Path, base: str | None) -> None:
    path = adapter_folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_without_a_base_is_refused(adapter_folder: Path) -> None:
    name_base(adapter_folder, None)
    with pytest.raises(ModelError, match="does not say of which model"):
        load(adapter_folder)


def test_a_base_for_a_whole_model_is_refused_not_ignored(learned_folder: Path) -> None:
    with pytest.raises(ModelError, match="whole model and no adapter"):
        load(learned_folder, base=learned_folder)


class TestFoldersThatHoldNoModel:
    def test_what_lies_there_and_what_is_near_is_listed(self, learned_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(learned_folder, tmp_path / "run" / "checkpoint-20")
        (tmp_path / "run" / "metrics.jsonl").touch()
        with pytest.raises(ModelError) as caught:
            load(tmp_path / "run")
        message = str(caught.value)
        assert "no config.json" in message
        assert "checkpoint-20/, metrics.jsonl" in message
        assert f"A model lies in {tmp_path / 'run' / 'checkpoint-20'}." in message

    def test_an_empty_folder_inside_a_models_points_to_the_model(self, learned_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(learned_folder, tmp_path / "model")
        (tmp_path / "model" / "runs").mkdir()
        with pytest.raises(ModelError, match=r"nothing at all\. A model lies in .*model\."):
            load(tmp_path / "model" / "runs")

    def test_a_misspelt_folder_gets_a_suggestion(self, tmp_path: Path) -> None:
        (tmp_path / "tuned-model").mkdir()
        with pytest.raises(ModelError, match=r"Did you mean .*tuned-model"):
            load(tmp_path / "tuned-modle")
        with pytest.raises(ModelError, match="Nor is there a folder"):
            load(tmp_path / "a" / "b")

    def test_a_name_that_may_be_an_id_is_suggested_a_folder_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers.utils

        def refuse(*_: object, **__: object) -> None:
            raise OSError("not on the Hub")

        monkeypatch.setattr(transformers.utils, "find_adapter_config_file", refuse)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "output").mkdir()
        with pytest.raises(ModelError, match=r"ouptut cannot be loaded: not on the Hub\. Did you mean output\?"):
            load("ouptut")

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").touch()
        with pytest.raises(ModelError, match="is a file"):
            load(tmp_path / "model.gguf")

    def test_missing_weights_are_not_filled_with_random_numbers(self, learned_folder: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        shutil.copytree(learned_folder, tmp_path / "broken")
        weights = load_file(tmp_path / "broken" / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
            load(tmp_path / "broken")

    def test_missing_weights_files_tokenizers_and_broken_json_are_named(
        self, learned_folder: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(learned_folder, tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"m cannot be loaded: .*model\.safetensors"):
            load(tmp_path / "m")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "m" / name).unlink()
        with pytest.raises(ModelError, match="no tokenizer"):
            load(tmp_path / "m")
        (tmp_path / "m" / "adapter_config.json").write_text("{")
        with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
            load(tmp_path / "m")


class TestDtype:
    @pytest.fixture
    def half_folder(self, tmp_path: Path) -> Path:
        tokenizer = make_tokenizer()
        make_model(len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path / "half")
        tokenizer.save_pretrained(tmp_path / "half")
        return tmp_path / "half"

    def test_bfloat16_is_kept_where_the_device_computes_it(
        self, half_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "computes_well", lambda dtype, device: True)
        assert load(half_folder, device="cpu").model.dtype == torch.bfloat16

    def test_bfloat16_becomes_float32_where_it_does_not_and_that_is_said(
        self, half_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sartor.device.cpu_flags", lambda: {"avx2"})
        speaker = load(half_folder, device="cpu")
        assert speaker.model.dtype == torch.float32
        assert speaker.notes == ("this cpu has no bfloat16 instructions: computing in float32",)
        assert load(half_folder, device="cpu", dtype="bf16").model.dtype == torch.bfloat16

    @pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
    def test_a_cpu_computes_bfloat16_where_its_flags_say_so(self, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sartor.device.cpu_flags", lambda: {flag})
        assert computes_well(torch.bfloat16, CPU)
        assert not computes_well(torch.float16, CPU)
        monkeypatch.setattr("sartor.device.cpu_flags", set)
        assert not computes_well(torch.bfloat16, CPU)
        assert computes_well(torch.float32, CPU)

    def test_a_gpu_computes_bfloat16_from_compute_capability_8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for capability, expected in (((8, 0), True), ((9, 0), True), ((7, 5), False)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
            assert computes_well(torch.bfloat16, torch.device("cuda", 0)) is expected

    def test_names_of_dtypes(self) -> None:
        assert parse_dtype("bf16") == parse_dtype("torch.bfloat16") == parse_dtype(torch.bfloat16) == torch.bfloat16
        assert parse_dtype("auto") is None
        with pytest.raises(ModelError, match=r"unknown dtype 'float31'.*Did you mean float32\?"):
            parse_dtype("float31")
        with pytest.raises(ModelError, match="int8 is not supported"):
            parse_dtype(torch.int8)


def test_devices_that_do_not_exist_or_are_untested_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == CPU
    for name, message in (("gpu", "no device is called 'gpu'"), ("mps", "not supported"), ("cuda", "has no CUDA")):
        with pytest.raises(ModelError, match=message):
            choose_device(name)
