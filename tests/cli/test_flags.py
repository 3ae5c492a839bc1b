"""Flags: dashes, switches, last wins, files before the command line, all problems at once with the nearest name."""

from pathlib import Path
from typing import Any

import pytest

from sartor.cli import generate, train_flags
from sartor.cli.field_flags import FIELD_FLAGS
from sartor.cli.own_flags import OWN_FLAGS
from sartor.errors import ConfigurationError

BASE = ["--model", "m", "--data", "d.jsonl"]


def fields(*argv: str) -> dict[str, Any]:
    return dict(train_flags.read([*BASE, *argv]).fields)


def problems(*argv: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        train_flags.read([*BASE, *argv])
    return caught.value.problems


def test_the_static_table_is_what_the_class_says() -> None:
    assert list(FIELD_FLAGS) == generate.field_flags(), (
        "run: python -m sartor.cli.generate > src/sartor/cli/field_flags.json"
    )
    assert Path(generate.__file__).with_name("field_flags.json").read_text(encoding="utf-8") == generate.table()


def test_no_name_or_alias_is_used_twice() -> None:
    names = [name for flag in train_flags.FLAGS for name in (flag.name, *flag.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--learning-rate", "1e-4"], {"learning_rate": 1e-4}),
        (["--learning_rate=1e-4"], {"learning_rate": 1e-4}),
        (["--max_steps", "-1"], {"max_steps": -1}),
        (["--max_length", "none"], {"max_length": None}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "false"], {"bf16": False}),
        (["--bf16=False"], {"bf16": False}),
        (["--no-bf16"], {"bf16": False}),
        (["--no_remove_unused_columns"], {"remove_unused_columns": False}),
        (["--gradient_checkpointing", "none"], {"gradient_checkpointing": None}),
        (["--packing", "--bf16"], {"packing": True, "bf16": True}),
        (["--learning_rate", "1", "--learning-rate", "2"], {"learning_rate": 2.0}),
        (["--packing", "--no-packing"], {"packing": False}),
        (["--report_to", "none"], {"report_to": ["none"]}),
        (["--report_to", "tensorboard", "wandb", "--seed", "1"], {"report_to": ["tensorboard", "wandb"], "seed": 1}),
        (["--report_to", "tensorboard", "--report_to", "wandb"], {"report_to": ["wandb"]}),
        (["--map", "user={q}", "--map", "assistant={a}=1"], {"map": ["user={q}", "assistant={a}=1"]}),
        (["--map", "user={q}", "assistant={a}"], {"map": ["user={q}", "assistant={a}"]}),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], {"lr_scheduler_kwargs": {"num_cycles": 2}}),
        (["--eos_token", "<|im_end|>"], {"eos_token": "<|im_end|>"}),
        (["--max_seq_length", "5"], {"max_length": 5}),
        (["--warmup_ratio", "0.1"], {"warmup_steps": 0.1}),
        (["--dtype", "float32", "--model_revision", "x"], {"model_init_kwargs": {"dtype": "float32", "revision": "x"}}),
    ],
)
def test_values_are_read_by_kind_and_the_last_wins(argv: list[str], expected: dict[str, Any]) -> None:
    assert fields(*argv) == expected


def test_trls_names_for_model_and_data_work() -> None:
    request = train_flags.read(
        ["--model_name_or_path", "m", "--dataset-name", "d", "--dataset_train_split", "train[:5]"]
    )
    assert (request.model, request.data, request.own["split"]) == ("m", ("d",), "train[:5]")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--lerning-rate", "1"], "did you mean --learning_rate?"),
        (["--zzzzqqqq"], "lists all options"),
        (["--learning_rate", "fast"], "--learning_rate 'fast' is no number"),
        (["--learning_rate"], "--learning_rate needs a value"),
        (["--max_steps", "1.5"], "--max_steps '1.5' is no whole number"),
        (["--bf16", "maybe"], "--bf16 'maybe' is neither true nor false"),
        (["--optim", "adamw_troch"], "did you mean adamw_torch?"),
        (["--lr_scheduler_kwargs", "{"], "is no JSON"),
        (["--lr_scheduler_kwargs", "[1]"], "is no JSON object"),
        (["--report_to"], "needs at least one value"),
        (["--seed", "1", "2"], "'2' belongs to no option"),
        (["--packing_strategy", "bfd", "stray"], "'stray' belongs to no option"),
        (["--fsdp"], "--fsdp is not supported"),
        (["--deepspeed", "ds.json"], "--deepspeed is not supported"),
        (["--load_in_4bit"], "--load_in_4bit is not supported"),
        (["--resume", "--resume_from_checkpoint", "x"], "--resume and --resume_from_checkpoint are the same"),
        (["--lora_r", "8"], "--lora_r only with --use_peft"),
        (["--warmup_ratio", "5"], "must be less than 1"),
        (["--eval_strategy", "steps"], "give --eval_data FILE or --eval_split NAME"),
        (["--eval_data", "x.jsonl"], "need --eval_strategy"),
        (["--dtype", "float32", "--model_init_kwargs", '{"dtype": "bfloat16"}'], "contradicts model_init_kwargs"),
        (["--config", "no-such.yaml"], "there is no such file"),
        (["--config"], "--config needs a file"),
    ],
)
def test_what_cannot_be_read_is_named(argv: list[str], text: str) -> None:
    told = problems(*argv)
    assert len(told) == 1
    assert text in told[0]


def test_all_problems_of_a_command_line_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        train_flags.read(["--model", "m", "--pakcing", "--seed", "x", "--lora_r", "2", "stray"])
    assert len(caught.value.problems) == 5  # and --data is missing


def test_files_of_either_kind_say_the_same_as_flags(tmp_path: Path) -> None:
    yaml, toml = tmp_path / "run.yaml", tmp_path / "run.toml"
    yaml.write_text(
        "model: m\ndataset_name: d\nlearning-rate: 1e-5\nmax_length: null\nbf16: false\nreport_to: "
        "[none]\nhub_token: null\n"
        "map: {user: '{q}', assistant: '{a}'}\nmodel_init_kwargs: {dtype: float32}\nmax_steps: 3\nproject: null\n",
        encoding="utf-8",
    )
    toml.write_text(
        'model = "m"\ndataset_name = "d"\nlearning-rate = 1e-5\nmax_length = "none"\nbf16 = false\n'
        'report_to = ["none"]\n'
        'hub_token = "none"\nmax_steps = 3\nmap = {user = "{q}", assistant = "{a}"}\n'
        'model_init_kwargs = {dtype = "float32"}\n',
        encoding="utf-8",
    )
    line = (
        "--model m --dataset_name d --learning-rate 1e-5 --max_length none --no-bf16 --report_to none --hub_token none "
        '--max_steps 3 --map user={q} assistant={a} --model_init_kwargs {"dtype":"float32"}'
    )
    expected = train_flags.read(line.split())
    assert expected.fields["learning_rate"] == 1e-5
    assert train_flags.read(["--config", str(yaml)]) == expected
    assert train_flags.read(["--config", str(toml)]) == expected


def test_the_command_line_overrides_the_file_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\nseed: 1\nmap: ['user={x}']\n", encoding="utf-8")
    request = train_flags.read(["--seed", "2", "--map", "user={q}", "--config", str(file)])
    assert request.fields == {"seed": 2, "map": ["user={q}"]}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.yaml", "lerning_rate: 1", "run.yaml: lerning_rate is unknown: did you mean learning_rate?"),
        ("run.yaml", "seed: often", "run.yaml: seed 'often' is no whole number"),
        ("run.yaml", "- 1", "not a list"),
        ("run.yaml", "a: [", "is no YAML"),
        ("run.yaml", "env: {A: 1}", "env is not supported"),
        ("run.yaml", "config: other.yaml", "a file cannot name another one"),
        ("run.toml", "a = ", "is no TOML"),
        ("run.ini", "a = 1", "must end in .yaml, .yml, .json or .toml"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, name: str, text: str, told: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    (problem,) = problems("--config", str(file))
    assert told in problem
    assert name in problem


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1", encoding="utf-8")
    assert f"did you mean {tmp_path / 'run.yaml'}?" in problems("--config", str(tmp_path / "runn.yaml"))[0]


def test_help_shows_every_option_that_does_something() -> None:
    text = train_flags.usage()
    for flag in (*OWN_FLAGS, *FIELD_FLAGS):
        assert flag.name in text, flag.name
        if flag.group:
            assert f"]{flag.name}" in text or f"--{flag.name}" in text, flag.name
            assert flag.help
