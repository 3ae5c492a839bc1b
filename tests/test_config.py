"""SFTConfig: every option honoured, refused or announced; old names; parsers; copies; settings per room."""

import copy
import dataclasses
import inspect
import json
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import HfArgumentParser, TrainingArguments

from sartor.config import SFTConfig, resolve, resolved_configuration
from sartor.config.own_options import OWN_FIELDS
from sartor.config.page import page
from sartor.config.sft_config import DEFAULTS
from sartor.config.table import OPTIONS, Status
from sartor.config.texts import GROUPS
from sartor.errors import ConfigurationError, RenamedWarning, SartorWarning

LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def config(**options: Any) -> SFTConfig:
    return SFTConfig(output_dir="unused", **options)


# --- the table ---

REFUSED_VALUES: dict[str, Any] = {
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "deepspeed": {"train_batch_size": 1},
    "parallelism_config": "x",
    "accelerator_config": {"split_batches": True},
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "optim_target_modules": ["attn"],
    "enable_jit_checkpoint": True,
    "debug": "underflow_overflow",
    "label_names": ["targets"],
    "activation_offloading": True,
}
NO_EFFECT_VALUES: dict[str, Any] = {
    "average_tokens_across_devices": False,
    "auto_find_batch_size": True,
    "logging_nan_inf_filter": False,
    "log_on_each_node": False,
    "log_level_replica": "error",
    "save_on_each_node": True,
    "eval_use_gather_object": True,
    "local_rank": 0,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 25,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 60,
    "dataloader_num_workers": 2,
    "dataloader_pin_memory": False,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_in_order": False,
    "length_column_name": "len",
    "pad_to_multiple_of": 8,
    "ignore_data_skip": True,
    "restore_callback_states_from_checkpoint": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
    "resume_from_checkpoint": "checkpoint-1",
}


def test_the_table_classifies_exactly_the_fields_of_trl_and_our_own() -> None:
    theirs = {entry.name for entry in dataclasses.fields(trl.SFTConfig)}
    assert {entry.name for entry in dataclasses.fields(TrainingArguments)} <= theirs
    assert set(OPTIONS) == theirs | set(OWN_FIELDS)
    assert not theirs & set(OWN_FIELDS)
    assert set(OPTIONS) == {entry.name for entry in dataclasses.fields(SFTConfig)}


def test_defaults_are_trls_but_for_checkpointing() -> None:
    for entry in dataclasses.fields(trl.SFTConfig):
        default = entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()
        if entry.name == "gradient_checkpointing":
            assert DEFAULTS[entry.name] is None
        else:
            assert DEFAULTS[entry.name] == default, entry.name


def test_every_refused_option_has_a_value_to_try_and_a_remark() -> None:
    assert set(REFUSED_VALUES) == {name for name, option in OPTIONS.items() if option.status is Status.REFUSED}
    assert set(NO_EFFECT_VALUES) == {name for name, option in OPTIONS.items() if option.status is Status.NO_EFFECT}
    assert all(option.remark for option in OPTIONS.values() if option.status is not Status.HONOURED)


def test_every_honoured_option_has_a_group_and_a_line() -> None:
    shown = [name for options in GROUPS.values() for name in options]
    assert sorted(shown) == sorted(name for name, option in OPTIONS.items() if option.status is Status.HONOURED)
    for options in GROUPS.values():
        for name, text in options.items():
            assert text or SFTConfig.__dataclass_fields__[name].metadata["help"], name


@pytest.mark.parametrize("name", sorted(REFUSED_VALUES))
def test_a_refused_option_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        config(**{name: REFUSED_VALUES[name]})
    assert OPTIONS[name].remark in str(caught.value)


@pytest.mark.parametrize("name", sorted(REFUSED_VALUES))
def test_a_refused_option_set_after_construction_is_found_by_resolve(name: str) -> None:
    args = config()
    setattr(args, name, REFUSED_VALUES[name])
    with pytest.raises(ConfigurationError, match=name):
        resolve(args)


@pytest.mark.parametrize("name", sorted(NO_EFFECT_VALUES))
def test_an_option_without_effect_is_said_in_one_line(name: str) -> None:
    further = {"dataloader_prefetch_factor": {"dataloader_num_workers": 1}}.get(name, {})
    args = config(**{name: NO_EFFECT_VALUES[name]}, **further)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = resolve(args)
    assert {str(entry.message) for entry in caught if entry.category is SartorWarning} == set(settings.notes)
    assert sum(note.startswith(f"{name}=") and "has no effect" in note for note in settings.notes) == 1


def test_defaults_and_derived_values_are_not_called_without_effect() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(config()).notes == ()
        assert resolve(config(use_cpu=True, eval_strategy="steps")).notes == ()
        assert resolve(config(label_names=["labels"], accelerator_config={"even_batches": True})).notes == ()


def test_the_options_page_is_up_to_date() -> None:
    file = Path(__file__).parents[1] / "docs" / "options.md"
    assert file.read_text(encoding="utf-8") == page(), "run: python -m sartor.config.page > docs/options.md"


# --- problems ---

PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": "1e-5"}, "learning_rate='1e-5' is a str"),
    ({"learning_rate": -1.0}, "learning_rate=-1.0 is too small"),
    ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ({"packing": "false"}, "packing='false' is a str"),
    ({"max_steps": 1.5}, "max_steps=1.5 is a float"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 is too small"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 is too small"),
    ({"max_length": 0}, "max_length=0 is too small"),
    ({"micro_batch_tokens": 0}, "micro_batch_tokens=0 is too small"),
    ({"num_train_epochs": 0}, "num_train_epochs=0 trains nothing"),
    ({"label_smoothing_factor": 1.0}, "label_smoothing_factor=1.0 is too large"),
    ({"adam_beta2": 1.0}, "adam_beta2=1.0 is too large"),
    ({"save_steps": 0}, "save_steps=0 is too small"),
    ({"optim": "adam_torch"}, "did you mean 'adamw_torch'"),
    ({"optim": "galore_adamw"}, "optim='galore_adamw' is not supported"),
    ({"optim": "adalomo"}, "optim='adalomo' is not supported"),
    ({"optim": "schedule_free_adamw"}, "optim='schedule_free_adamw' is not supported"),
    ({"lr_scheduler_type": "cosin"}, "did you mean 'cosine'"),
    ({"loss_type": "nlll"}, "did you mean 'nll'"),
    ({"packing_strategy": "bfd_spilt"}, "did you mean 'bfd_split'"),
    ({"truncation_mode": "keep_start_end"}, "truncation_mode='keep_start_end' is unknown"),
    ({"hub_strategy": "sometimes"}, "hub_strategy='sometimes' is unknown"),
    ({"train_sampling_strategy": "batch_rebalance"}, "use 'group_by_length'"),
    ({"fp16": True, "bf16": True}, "choose one"),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, "choose one"),
    ({"strict_precision": True, "bf16": False}, "strict_precision=True needs"),
    ({"packing": True, "max_length": None}, "packing=True needs max_length"),
    ({"eval_packing": True, "max_length": None}, "eval_packing=True needs max_length"),
    ({"loss_type": "dft", "label_smoothing_factor": 0.1}, "loss_type='dft'"),
    ({"gradient_checkpointing": True, "activation_checkpointing": False}, "contradict each other"),
    ({"gradient_checkpointing_kwargs": {"selective": True}}, "selective cannot be set"),
    ({"dataset_kwargs": {"skip": True}}, "the only key is skip_prepare_dataset"),
    ({"total_batch_size": 12, "per_device_train_batch_size": 5}, "is not a multiple"),
    (
        {"total_batch_size": 16, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "means gradient_accumulation_steps=4",
    ),
    ({"unroll": True}, "set assistant_only_loss=True"),
    ({"unroll": True, "assistant_only_loss": True, "completion_only_loss": False}, "leave one out"),
    ({"append_eot": True}, "set assistant_only_loss=True"),
    ({"target_start": "partially"}, "did you mean 'partial'"),
    ({"no_targets": "ignore"}, "it must be one of drop, error"),
    ({"bad_rows": "ignore"}, "it must be one of error, skip"),
    ({"mix_until": "never"}, "it must be one of first_exhausted, all_exhausted"),
    ({"map": ["user"]}, "has no template"),
    ({"map": ["human={q}"]}, "'human'"),
    ({"map": "user={q}"}, "must be a list"),
    ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches cannot be set"),
    ({"pad_to_multiple_of": "eight"}, "pad_to_multiple_of='eight'"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end"),
    ({"warmup_steps": -1}, "warmup_steps=-1 is too small"),
]


@pytest.mark.parametrize(("options", "text"), PROBLEMS, ids=[text for _, text in PROBLEMS])
def test_a_wrong_option_is_named_with_what_to_do(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(**options)
    assert text in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(learning_rate="1e-5", fsdp="full_shard", optim="adam", packing=True, max_length=None, save_steps=-2)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for name in ("learning_rate", "fsdp", "optim", "packing", "save_steps"):
        assert name in told


def test_transformers_own_checks_are_told_with_ours() -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(load_best_model_at_end=True, learning_rate=-1.0)
    assert len(caught.value.problems) == 2


def test_an_optimizer_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install bitsandbytes"):
        config(optim="paged_adamw_8bit")
    with pytest.raises(ConfigurationError, match="pip install torch-optimi"):
        config(optim="stable_adamw")


# --- environment and device ---


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED"),
        ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "ACCELERATE_DYNAMO_BACKEND"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "ACCELERATE_MIXED_PRECISION=fp16 contradicts bf16=True"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "ACCELERATE_MIXED_PRECISION=fp8 is not supported"),
    ],
)
def test_a_launchers_variables_are_refused_before_anything_waits(
    variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=text):
        config()


def test_the_variables_of_one_process_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = config(bf16=True)
    assert args.mixed_precision == "no"


def test_variables_set_later_are_found_by_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    args = config()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE=2"):
        resolve(args)


def test_several_visible_gpus_are_refused_with_how_to_pick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTConfig, "device", torch.device("cuda:0"))
    monkeypatch.setattr(SFTConfig, "n_gpu", 4)
    with pytest.raises(ConfigurationError, match=r"sees 4 GPUs.*CUDA_VISIBLE_DEVICES=0"):
        config()


def test_an_untested_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTConfig, "device", torch.device("mps"))
    with pytest.raises(ConfigurationError, match="'mps' is not supported: set use_cpu=True"):
        config()


def test_accelerates_cpu_switch_means_use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert config().use_cpu


# --- what construction derives ---


def test_bf16_on_a_cpu_is_kept_and_hidden_from_accelerate() -> None:
    args = config(bf16=True, bf16_full_eval=True)
    assert args.bf16 is True
    assert args.bf16_full_eval is True
    assert args.mixed_precision == "no"


def test_bf16_not_given_is_the_opposite_of_fp16() -> None:
    assert config().bf16 is True
    assert config(fp16=True).bf16 is False


@pytest.mark.parametrize("value", [None, True, False])
def test_checkpointing_keeps_its_value_under_both_names_without_a_warning(value: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = config(gradient_checkpointing=value)
    assert args.gradient_checkpointing is value
    assert args.activation_checkpointing is value
    assert config(activation_checkpointing=value).gradient_checkpointing is value
    assert resolve(args).engine.gradient_checkpointing is value


def test_total_batch_size_alone_decides_both_parts() -> None:
    args = config(total_batch_size=12)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (6, 2)


def test_total_batch_size_sets_accumulation() -> None:
    args = config(total_batch_size=32, per_device_train_batch_size=4)
    assert args.gradient_accumulation_steps == 8
    assert dataclasses.replace(args, learning_rate=1.0).gradient_accumulation_steps == 8


def test_old_values_are_translated() -> None:
    with pytest.warns(RenamedWarning, match="'nll'"):
        assert config(loss_type="chunked_nll").loss_type == "nll"
    with pytest.warns(RenamedWarning, match="'bfd_split'"):
        assert config(packing_strategy="bfd-requeue").packing_strategy == "bfd_split"


# --- old names ---


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ({"max_seq_length": 77}, "max_length", 77),
        ({"warmup_ratio": 0.1}, "warmup_steps", 0.1),
        ({"warmup_ratio": 0.0}, "warmup_steps", 0),
        ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
        ({"group_by_length": False}, "train_sampling_strategy", "random"),
        ({"no_cuda": True}, "use_cpu", True),
        ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
    ],
)
def test_an_old_name_is_accepted_and_its_new_one_named(old: dict[str, Any], new: str, value: Any) -> None:
    with pytest.warns(RenamedWarning, match=new) as caught:
        args = config(**old)
    assert getattr(args, new) == value
    assert caught[0].filename == __file__
    assert not set(old) & {entry.name for entry in dataclasses.fields(args)}
    assert not set(old) & set(args.to_dict())


def test_an_old_name_beside_its_new_one_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="max_seq_length is the old name of max_length"):
        config(max_seq_length=1, max_length=2)


def test_a_ratio_that_is_none_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="warmup_ratio=3"):
        config(warmup_ratio=3)


def test_overwrite_output_dir_is_said_to_have_no_effect() -> None:
    with pytest.warns(RenamedWarning, match="overwrite_output_dir has no effect"):
        config(overwrite_output_dir=True)


def test_logging_dir_becomes_tensorboards_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="contradict"):
        config(logging_dir="elsewhere")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    with pytest.warns(RenamedWarning, match="TENSORBOARD_LOGGING_DIR"):
        config(logging_dir=str(tmp_path / "logs"))
    import os

    assert os.environ.pop("TENSORBOARD_LOGGING_DIR") == str(tmp_path / "logs")


def test_other_old_names_are_an_error_as_everywhere() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        config(no_such_option=1)


# --- a configuration is a plain dataclass ---


@dataclass
class OwnConfig(SFTConfig):
    flavour: str = field(default="plain", metadata={"help": "A user's own option."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.flavour = self.flavour.upper()


def test_a_subclass_with_its_own_post_init_takes_old_names() -> None:
    with pytest.warns(RenamedWarning, match="OwnConfig: max_seq_length"):
        args = OwnConfig(output_dir="unused", max_seq_length=9, flavour="salt")
    assert (args.max_length, args.flavour) == (9, "SALT")


@pytest.mark.parametrize("kind", [SFTConfig, OwnConfig])
def test_copies_are_equal_and_checked(kind: type[SFTConfig]) -> None:
    args = kind(output_dir="unused", max_length=12, bf16=True, gradient_checkpointing=True, report_to="none")
    for twin in (copy.deepcopy(args), pickle.loads(pickle.dumps(args)), dataclasses.replace(args)):
        assert type(twin) is kind
        assert resolved_configuration(twin) == resolved_configuration(args)
    assert dataclasses.replace(args, max_length=13).max_length == 13
    with pytest.raises(ConfigurationError):
        dataclasses.replace(args, max_length=-1)


@pytest.mark.parametrize("kind", [TrainingArguments, trl.SFTConfig])
def test_the_constructed_arguments_of_the_other_libraries_are_accepted(kind: type[TrainingArguments]) -> None:
    theirs = kind(output_dir="unused", use_cpu=True, eval_strategy="steps", bf16=False)
    values = {entry.name: getattr(theirs, entry.name) for entry in dataclasses.fields(theirs)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = SFTConfig(**values)
        assert resolve(args).notes == ()
    assert args.logging_steps == theirs.logging_steps


def test_the_signature_shows_the_fields() -> None:
    assert list(inspect.signature(SFTConfig).parameters) == [entry.name for entry in dataclasses.fields(SFTConfig)]
    assert "flavour" in inspect.signature(OwnConfig).parameters


def test_tokens_are_not_in_the_text_of_a_configuration() -> None:
    @dataclasses.dataclass
    class Mine(SFTConfig):
        flavour: str = "sweet"

    own = Mine(
        output_dir="unused", use_cpu=True, hub_token="hf_secret", model_init_kwargs={"deep": {"token": "hf_secret"}}
    )
    args = config(
        hub_token="hf_secret",
        eos_token="<|im_end|>",
        optim_args="token=hf_secret",
        model_init_kwargs={"api_key": "hf_secret", "proxies": {"https": "http://ada:hf_secret@proxy:3128"}},
    )
    for one in (args, own):
        for text in (repr(one), str(one), one.to_json_string(), str(one.to_dict()), str(one.to_sanitized_dict())):
            assert "hf_secret" not in text
            assert "learning_rate" in text
    assert "flavour=sweet" in repr(own)
    assert args.to_dict()["eos_token"] == "<|im_end|>"
    assert args.model_init_kwargs["api_key"] == args.hub_token == "hf_secret"


# --- parsers ---

COMMAND = (
    "--output_dir unused --bf16 --max_seq_length 7 --gradient_checkpointing --eval_packing false --warmup_ratio 0.2 "
    "--optim adafactor --micro_batch_tokens 256 --no_cuda --evaluation_strategy steps --eval_steps 5 "
    "--total_batch_size 16"
)


@pytest.mark.parametrize("parser", [HfArgumentParser, trl.TrlParser])
def test_argument_parsers_read_every_kind_of_field(parser: type[HfArgumentParser]) -> None:
    words = [*COMMAND.split(), "--map", "user={q}", "assistant={a}", "--lr_scheduler_kwargs", '{"num_cycles": 2}']
    (args,) = parser(SFTConfig).parse_args_into_dataclasses(words)
    assert type(args) is SFTConfig
    assert (args.bf16, args.max_length, args.gradient_checkpointing, args.eval_packing) == (True, 7, True, False)
    assert (args.warmup_steps, args.optim, args.micro_batch_tokens, args.use_cpu) == (0.2, "adafactor", 256, True)
    assert (args.eval_strategy, args.eval_steps, args.gradient_accumulation_steps) == ("steps", 5, 2)
    assert args.map == ["user={q}", "assistant={a}"]
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


def test_trls_parser_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: unused\nlearning_rate: 1.0e-4\npacking: true\n", encoding="utf-8")
    (args,) = trl.TrlParser(SFTConfig).parse_args_and_config(["--config", str(file)])
    assert (args.learning_rate, args.packing) == (1e-4, True)


# --- settings ---


def test_settings_carry_what_was_asked_for() -> None:
    settings = resolve(
        config(
            max_length=99,
            packing=True,
            eval_packing=False,
            packing_strategy="wrapped",
            dataset_num_proc=3,
            seed=7,
            map=["user={q} = ?", "assistant={a}"],
            loss_type="dft",
            neftune_noise_alpha=5.0,
            max_grad_norm=0.5,
            micro_batch_tokens=64,
            loss_chunk_rows=32,
            strict_precision=True,
            fp16=True,
        )
    )
    assert settings.data.mapping == (("user", "{q} = ?"), ("assistant", "{a}"))
    assert (settings.data.max_length, settings.data.packing, settings.data.packing_strategy) == (99, True, "wrapped")
    assert (settings.data.num_proc, settings.data.seed, settings.eval_data.packing) == (3, 7, False)
    engine = settings.engine
    assert (engine.loss_type, engine.neftune_noise_alpha, engine.max_grad_norm, engine.seed) == ("dft", 5.0, 0.5, 7)
    assert (engine.micro_batch_tokens, engine.loss_chunk_rows) == (64, 32)
    assert (engine.bf16, engine.fp16, engine.strict_precision) == (False, True, True)


def test_the_written_configuration_is_json_without_tokens() -> None:
    args = config(
        hub_token="hf_secret",
        eos_token="<|im_end|>",
        model_init_kwargs={"dtype": torch.bfloat16, "token": "hf_secret"},
        accelerator_config={"even_batches": True},
    )
    written = json.loads(json.dumps(resolved_configuration(args)))
    assert "hf_secret" not in json.dumps(written)
    assert written["eos_token"] == "<|im_end|>"
    assert written["model_init_kwargs"] == {"dtype": "bfloat16", "token": "<masked>"}
    assert written["lr_scheduler_type"] == "linear"
    assert set(written) == {entry.name for entry in dataclasses.fields(SFTConfig)}
