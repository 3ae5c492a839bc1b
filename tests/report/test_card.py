from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from sartor.errors import RunFolderError
from sartor.records import DataSummary, Layout, Plan, RowFormat
from sartor.report import card
from sartor.report.card import Adapter, CardFacts, Losses, model_card, select_hyperparameters, write_card

HOSTILE = [
    'a"b',
    "a: b",
    "a\nlicense: mit",
    "a\n---\n# x",
    "# {{ x }}",
    "'",
    "ü 模型 🙂",
    "[x](y)",
    "<script>",
    "-",
    "a|b`c",
    "\x00\u2028",
]


def facts(**changes: Any) -> CardFacts:
    made = CardFacts(
        model_name="Rickified",
        base_model="HuggingFaceTB/SmolLM2-360M",
        hub_model_id="alice/Rickified",
        hyperparameters={"learning_rate": 2e-5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        losses=Losses.of([{"loss": 2.0, "step": 10}, {"loss": 1.25, "step": 20}, {"eval_loss": 1.5, "step": 20}]),
        train=DataSummary("train", RowFormat.MESSAGES, 100, 99, 18_000, 15_000, 370, 3, 40, 20, 1),
        plan=Plan(Layout.FLAT_DOCUMENTS, 2048, True, 512, "sdpa", "float32", "bfloat16", 2, "cuda:0"),
        versions={"sartor": "0.1.0", "torch": "2.13.0"},
        dataset_name="qgallouedec/rick-science",
    )
    return dataclasses.replace(made, **changes)


def metadata(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def test_the_card_says_all_its_facts(tmp_path: Path) -> None:
    path = write_card(facts(license="Apache 2.0", tags=["mine"], language="en", tasks="text-generation"), tmp_path)
    assert path == tmp_path / "README.md"
    assert metadata_load(path) == {
        "base_model": "HuggingFaceTB/SmolLM2-360M",
        "base_model_relation": "finetune",
        "datasets": ["qgallouedec/rick-science"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "model_name": "Rickified",
        "pipeline_tag": "text-generation",
        "tags": ["generated_from_trainer", "sft", "sartor", "mine", "text-generation"],
    }
    text = path.read_text()
    for said in (
        "# Rickified\n",
        "[qgallouedec/rick-science](https://huggingface.co/datasets/qgallouedec/rick-science)",
        'model="alice/Rickified"',
        "`sartor chat alice/Rickified`",
        "all weights",
        "100 rows (messages), 99 examples with 18,000 tokens, of which 15,000 are trained; the longest has 370",
        "3 rows were cut by 40 tokens, 20 of them trained ones; 1 rows without any target were dropped",
        "Optimizer batch: 16 examples",
        "Parameters in float32, computed in bfloat16 on cuda.",
        "| training, first logged (step 10) | 2.0000 |",
        "| training, last logged (step 20) | 1.2500 |",
        "| evaluation | 1.5000 |",
        "| `learning_rate` | 2e-05 |",
        "| torch | 2.13.0 |",
    ):
        assert said in text


def test_an_adapter_is_presented_as_one() -> None:
    text = model_card(facts(adapter=Adapter("LORA", 8, 16, 0.05, ("q_proj", "v_proj"))))
    assert metadata(text)["library_name"] == "peft"
    assert metadata(text)["base_model_relation"] == "adapter"
    assert "lora" in metadata(text)["tags"]
    assert "LoRA (r 8, alpha 16, dropout 0.05, on `q_proj`, `v_proj`)" in text
    assert "pip install peft" in text


def test_the_facts_of_a_peft_adapter_are_read_from_its_configuration() -> None:
    from peft import LoraConfig, PromptTuningConfig

    lora = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.1, target_modules=["v_proj", "q_proj"])
    assert card.adapter_facts(lora) == Adapter("LORA", 4, 32, 0.1, ("q_proj", "v_proj"))
    assert card.adapter_facts(LoraConfig(target_modules="all-linear")).targets == ("all-linear",)
    assert card.adapter_facts(PromptTuningConfig(num_virtual_tokens=2)) == Adapter("PROMPT_TUNING")


@pytest.mark.parametrize("adapter", [None, Adapter("LORA", 8)])
@pytest.mark.parametrize(
    "base", ["/home/ada/customer-acme/base", "./customer-acme/base", "C:\\customer-acme\\base", "~/base"]
)
def test_a_local_base_model_is_named_by_its_last_part_and_not_in_the_metadata(
    base: str, adapter: Adapter | None
) -> None:
    text = model_card(facts(base_model=base, adapter=adapter))
    assert "customer-acme" not in text
    assert "`base`, a model from a local folder" in text
    assert not {"base_model", "base_model_relation"} & set(metadata(text))


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert metadata(model_card(facts(base_model="org/model")))["base_model"] == "org/model"
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in metadata(model_card(facts(base_model="org/model")))


def test_data_from_files_is_named_without_its_folder_and_not_in_the_metadata() -> None:
    text = model_card(facts(dataset_name=["/home/ada/secret/train.jsonl", "more.csv"], dataset="my own rows"))
    assert "secret" not in text
    assert "`train.jsonl` and `more.csv` and my own rows" in text
    assert "datasets" not in metadata(text)


def test_transformers_keywords_for_data_are_honoured() -> None:
    text = model_card(
        facts(dataset_name=None, dataset_tags=["org/data"], dataset="Our Data", dataset_args="split=train")
    )
    assert metadata(text)["datasets"] == ["org/data"]
    assert "[org/data](https://huggingface.co/datasets/org/data) and Our Data (split=train)" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_the_metadata_or_the_text(name: str) -> None:
    text = model_card(
        facts(
            model_name=name,
            base_model=name,
            hub_model_id=name,
            dataset_name=name,
            dataset=[name],
            dataset_args=name,
            tags=[name],
            tasks=[name],
            license=name,
            versions={name: name},
            adapter=Adapter("LORA", 1, 1, None, (name,)),
            hyperparameters={"optim": name},
            losses=Losses.of([{f"eval_{name}_loss": 1.0}]),
            evaluation=[DataSummary(name, RowFormat.TEXT, 1, 1, 1, 1, 1)],
        )
    )
    one_line = card.markdown.one_line(name)
    data = metadata(text)
    assert data["model_name"] == one_line
    assert data["library_name"] == "peft"
    assert (one_line in data["tags"]) == bool(one_line)
    assert data.get("license") != "mit"
    body = ModelCard(text).text
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        f"# {card.markdown.text(name)}".rstrip() + ("" if one_line else " ")
    ]
    assert "<script>" not in body.replace("\\<script\\>", "").replace("`<script>`", "")
    rows = [line.replace("\\|", "") for line in body.splitlines() if line.startswith("|")]
    assert all(row.count("|") == 3 for row in rows)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("My Licence, 1", {"license": "other", "license_name": "my-licence-1"}),
        (None, {}),
        (" ", {}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_other(given: str | None, expected: dict[str, str]) -> None:
    data = metadata(model_card(facts(license=given)))
    assert {key: data[key] for key in ("license", "license_name") if key in data} == expected


def test_a_model_without_a_template_is_prompted_with_text() -> None:
    text = model_card(facts(has_chat_template=False, hub_model_id=None))
    assert '"role"' not in text
    assert "sartor chat" not in text
    assert 'model="path/to/this/folder"' in text


def test_the_example_of_the_card_is_python() -> None:
    for given in (facts(), facts(has_chat_template=False), facts(hub_model_id=None)):
        compile(model_card(given).split("```python\n")[1].split("```")[0], "card", "exec")


def test_little_known_makes_a_short_card_without_claims() -> None:
    text = model_card(CardFacts(model_name="m"))
    assert "a model that was built in code" in text
    assert set(metadata(text)) == {"library_name", "model_name", "pipeline_tag", "tags"}
    for claim in ("Loss", "Hyperparameters", "Versions", "Training data", "computed in", " on "):
        assert claim not in text


def test_hyperparameters_are_those_that_decide_the_result_and_are_on() -> None:
    from enum import StrEnum

    class Schedule(StrEnum):
        COSINE = "cosine"

    options = {
        "seed": 42,
        "learning_rate": 2e-5,
        "lr_scheduler_type": Schedule.COSINE,
        "max_steps": -1,
        "packing": False,
        "neftune_noise_alpha": None,
        "warmup_steps": 0,
        "hub_token": "hf_secret",
        "output_dir": "/home/ada",
    }
    assert list(select_hyperparameters(options).items()) == [
        ("learning_rate", 2e-5),
        ("lr_scheduler_type", "cosine"),
        ("warmup_steps", 0),
        ("seed", 42),
    ]
    assert select_hyperparameters({"max_steps": 5, "packing": True}) == {"max_steps": 5, "packing": True}


def test_every_hyperparameter_is_an_option_of_the_trainer() -> None:
    from trl import SFTConfig

    assert set(card.HYPERPARAMETERS) <= {field.name for field in dataclasses.fields(SFTConfig)}


def test_losses_of_several_sets_and_of_a_run_that_logged_nothing() -> None:
    several = Losses.of(
        [{"eval_a_loss": 3.0}, {"eval_a_loss": 2.0}, {"eval_b_loss": 1.0}, {"train_runtime": 61.0, "train_loss": 2.5}]
    )
    assert (several.evaluations, several.runtime_s, several.first) == ({"a": 2.0, "b": 1.0}, 61.0, None)
    text = model_card(facts(losses=several))
    assert "- Time: 1 min 1 s." in text
    assert "| training, mean of the run | 2.5000 |" in text
    assert "| evaluation, a | 2.0000 |" in text
    assert "first logged" not in text
    assert "not finite" in model_card(facts(losses=Losses.of([{"loss": float("nan"), "step": 1}])))
    assert Losses.of([]) == Losses()


def test_installed_versions_name_what_is_there() -> None:
    versions = card.installed_versions("peft", "no-such-package-at-all")
    assert {"sartor", "torch", "transformers", "peft"} <= set(versions)
    assert "no-such-package-at-all" not in versions


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere"):
        write_card(facts(), tmp_path / "nowhere")


def test_a_card_in_the_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("old " * 10_000)
    assert write_card(facts(), tmp_path).read_text() == model_card(facts())
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
