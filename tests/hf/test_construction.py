"""What a trainer is made of.

Its arguments, what is changed on tokenizer and model, and problems that are told at once.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from sartor import SFTConfig, SFTTrainer
from sartor.errors import ConfigurationError, DataError, ModelError, RenamedWarning, RunFolderError
from sartor.run import loading
from tests.hf import tiny


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny.make_model().save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that models were loaded by."""
    names: list[str] = []
    load = loading.load_model

    def counted(name: str, *rest: Any) -> Any:
        names.append(name)
        return load(name, *rest)

    monkeypatch.setattr(loading, "load_model", counted)
    return names


def test_the_signature_is_trls_and_old_arguments() -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed; its signature is the reference")
    theirs = inspect.signature(trl.SFTTrainer.__init__).parameters
    ours = inspect.signature(SFTTrainer.__init__).parameters
    assert list(ours) == [*theirs, "old_arguments"]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name


def test_the_model_that_was_passed_is_the_one_that_is_trained(tmp_path: Path) -> None:
    model = tiny.make_model()
    before = tiny.weights(model)
    trainer = tiny.trainer(tmp_path, model=model, max_steps=2)
    assert trainer.model is model
    trainer.train()
    assert trainer.model is model
    assert any((before[name] != parameter).any() for name, parameter in model.named_parameters())


def test_a_trained_model_works_in_a_pipeline(tmp_path: Path) -> None:
    from transformers import pipeline

    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    generate = pipeline("text-generation", model=trainer.model, tokenizer=trainer.processing_class, device="cpu")
    answer = generate("the moon is", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert answer.startswith("the moon is")


def test_a_new_eos_token_reaches_tokenizer_and_model_and_a_list_stays_a_list(tmp_path: Path) -> None:
    model = tiny.make_model()
    model.generation_config.eos_token_id = [0, 3]
    trainer = tiny.trainer(tmp_path, model=model, eos_token="<|im_end|>")
    assert trainer.processing_class.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == 2
    assert model.generation_config.eos_token_id == [2, 0, 3]


def test_eos_and_pad_are_set_as_trl_sets_them(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed; it is the reference here")
    for listed in (None, 0, [0, 3], [2, 0]):
        found = []
        for kind in (trl.SFTTrainer, SFTTrainer):
            model = tiny.make_model()
            model.generation_config.eos_token_id = listed
            options = {"eos_token": "<|im_end|>"}
            tokenizer = tiny.make_tokenizer()
            if kind is SFTTrainer:
                tiny.trainer(tmp_path, model=model, processing_class=tokenizer, **options)
            else:
                args = trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)
                kind(model, args, train_dataset=tiny.dataset(), processing_class=tokenizer)
            configs = (model.config, model.generation_config)
            found.append(
                [(c.eos_token_id, c.pad_token_id) for c in configs] + [tokenizer.eos_token, tokenizer.pad_token]
            )
        assert found[0] == found[1], listed


def test_pad_falls_back_to_eos_and_can_be_chosen(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    assert trainer.processing_class.pad_token == "<|endoftext|>"
    assert trainer.model.config.pad_token_id == 0
    trainer = tiny.trainer(tmp_path, pad_token="<unk>")
    assert trainer.model.config.pad_token_id == 3


def test_a_token_that_is_not_in_the_vocabulary_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="eos_token='<end>'"):
        tiny.trainer(tmp_path, eos_token="<end>")
    with pytest.raises(ConfigurationError, match="pad_token='<pad>'"):
        tiny.trainer(tmp_path, pad_token="<pad>")


def test_model_tags_are_trls_and_ours(tmp_path: Path) -> None:
    assert set(tiny.trainer(tmp_path).model.model_tags) == {"trl", "sft", "sartor"}


def test_the_prepared_rows_have_ids_and_unshifted_labels(tmp_path: Path) -> None:
    rows = tiny.dataset([{"prompt": "the moon", "completion": " is cold"}])
    row = tiny.trainer(tmp_path, rows=rows).train_dataset[0]
    the, moon, is_, cold = (tiny.VOCABULARY.index(word) for word in ("the", "moon", "is", "cold"))
    assert row["input_ids"] == [the, moon, is_, cold, 0]
    assert row["labels"] == [-100, -100, is_, cold, 0]


@pytest.mark.parametrize("rows", ["list", "file", "stream"])
def test_rows_come_as_lists_files_and_streams(rows: str, tmp_path: Path) -> None:
    import json

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny.texts(4)), encoding="utf-8")
    given = {"list": tiny.texts(4), "file": str(path), "stream": tiny.stream(tiny.texts(4))}[rows]
    output = tiny.trainer(tmp_path / "run", rows=given, max_steps=2).train()
    assert output.global_step == 2


def test_training_arguments_of_transformers_are_accepted(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", learning_rate=3e-4, max_steps=1)
    trainer = SFTTrainer(tiny.make_model(), args, train_dataset=tiny.dataset(), processing_class=tiny.make_tokenizer())
    assert isinstance(trainer.args, SFTConfig)
    assert trainer.args.learning_rate == 3e-4
    assert trainer.args.gradient_checkpointing is None  # False is their default, not a wish
    assert trainer.train().global_step == 1


def test_without_arguments_the_run_folder_is_named_after_the_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trainer = SFTTrainer(str(model_folder), train_dataset=tiny.dataset())
    assert trainer.args.output_dir == "base-SFT"


@pytest.mark.parametrize(
    ("old", "value", "field", "expected"),
    [("max_seq_length", 7, "max_length", 7), ("dataset_text_field", "words", "dataset_text_field", "words")],
)
def test_old_arguments_become_options_with_a_warning(
    old: str, value: Any, field: str, expected: Any, tmp_path: Path
) -> None:
    rows = tiny.dataset([{"words": "the moon is old", "text": "the moon is old"}])
    with pytest.warns(RenamedWarning, match=field):
        trainer = SFTTrainer(
            tiny.make_model(),
            tiny.config(tmp_path),
            train_dataset=rows,
            processing_class=tiny.make_tokenizer(),
            **{old: value},
        )
    assert getattr(trainer.args, field) == expected


def test_tokenizer_is_the_old_name_of_processing_class(tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    with pytest.warns(RenamedWarning, match="processing_class"):
        trainer = SFTTrainer(
            tiny.make_model(), tiny.config(tmp_path), train_dataset=tiny.dataset(), tokenizer=tokenizer
        )
    assert trainer.processing_class is tokenizer


def test_an_argument_that_never_was_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'train_dateset'; did you mean 'train_dataset'"):
        SFTTrainer(tiny.make_model(), tiny.config(tmp_path), train_dateset=tiny.dataset())


def test_problems_of_options_data_and_model_are_told_at_once_and_before_loading(
    model_folder: Path, tmp_path: Path, loads: list[str]
) -> None:
    args = tiny.config(tmp_path, eval_strategy="steps", eval_steps=1)
    args.max_length = -1
    with pytest.raises(ConfigurationError) as caught:
        SFTTrainer(str(tmp_path / "nowhere"), args, train_dataset=None)
    told = str(caught.value)
    for part in ("max_length", "eval_dataset", "train_dataset", "nowhere"):
        assert part in told
    assert loads == []


def test_a_broken_row_is_told_before_the_model_is_loaded(model_folder: Path, tmp_path: Path, loads: list[str]) -> None:
    rows = [{"text": "the moon"}, {"text": 5}]
    with pytest.raises(DataError, match="row 1"):
        SFTTrainer(str(model_folder), tiny.config(tmp_path / "run"), train_dataset=rows)
    assert loads == []
    trainer = SFTTrainer(str(model_folder), tiny.config(tmp_path / "run"), train_dataset=rows[:1])
    assert loads == [str(model_folder)]
    assert trainer.processing_class.eos_token == "<|endoftext|>"


def test_a_model_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    tiny.make_tokenizer().save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="vit model, which is no causal language model"):
        SFTTrainer(str(tmp_path / "vit"), tiny.config(tmp_path / "run"), train_dataset=tiny.dataset())


CONTRADICTIONS = [
    ({"eval_strategy": "epoch"}, {}, "needs eval_dataset"),
    ({"eval_on_start": True}, {}, "eval_on_start=True needs eval_dataset"),
    ({"save_strategy": "best", "metric_for_best_model": "loss"}, {}, "needs evaluations"),
    (
        {"save_strategy": "best", "eval_strategy": "epoch"},
        {"eval_dataset": tiny.texts(2)},
        "needs metric_for_best_model",
    ),
    (
        {"metric_for_best_model": "bleu", "eval_strategy": "epoch"},
        {"eval_dataset": tiny.texts(2)},
        "'bleu' is nothing that an evaluation measures: choose one of eval_loss",
    ),
    (
        {"metric_for_best_model": "loss", "eval_strategy": "epoch"},
        {"eval_dataset": {"one": tiny.texts(2)}},
        "choose one of eval_one_loss",
    ),
    ({"batch_eval_metrics": True}, {"compute_metrics": lambda given: {}}, "parameter compute_result"),
    ({}, {"data_collator": 5}, "data_collator must be a function"),
    ({"packing": True}, {"data_collator": list}, "packing=True and an own data_collator"),
    ({"loss_type": "dft"}, {"compute_loss_func": len}, "are two losses"),
    ({"model_init_kwargs": {"dtype": "float32"}}, {}, "model_init_kwargs is for a model given by name"),
    ({}, {"peft_config": {"r": 8}}, "peft_config must be a peft.PeftConfig"),
]


@pytest.mark.parametrize(("options", "arguments", "told"), CONTRADICTIONS)
def test_contradictions_are_errors_that_say_what_to_do(
    options: dict[str, Any], arguments: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        tiny.trainer(tmp_path, **options, **arguments)


def test_a_stream_without_max_steps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set max_steps"):
        tiny.trainer(tmp_path, rows=tiny.stream(tiny.texts(3)))


def test_an_optimizer_that_wants_the_loss_several_times_in_a_step_is_refused(tmp_path: Path) -> None:
    import torch

    model = tiny.make_model()
    with pytest.raises(ConfigurationError, match="LBFGS computes the loss several times"):
        tiny.trainer(tmp_path, model=model, optimizers=(torch.optim.LBFGS(model.parameters()), None))
    with pytest.raises(ConfigurationError, match="LBFGS computes the loss several times"):
        tiny.trainer(tmp_path, optimizer_cls_and_kwargs=(torch.optim.LBFGS, {}))


def test_two_optimizers_are_an_error(tmp_path: Path) -> None:
    import torch

    model = tiny.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="both name an optimizer"):
        tiny.trainer(
            tmp_path, model=model, optimizers=(optimizer, None), optimizer_cls_and_kwargs=(torch.optim.SGD, {})
        )


def test_a_run_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(RunFolderError, match="taken cannot be written"):
        tiny.trainer(tmp_path / "taken")


def test_a_processing_class_that_is_no_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a tokenizer, not str"):
        tiny.trainer(tmp_path, processing_class="gpt2")


def test_a_model_spread_over_devices_is_refused(tmp_path: Path) -> None:
    model = tiny.make_model()
    model.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(ModelError, match="cpu, disk"):
        tiny.trainer(tmp_path, model=model)


def test_hyperparameter_search_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hyperparameter search is not supported"):
        tiny.trainer(tmp_path).train(trial={"learning_rate": 1})
