"""The flags of `sartor train` that are no fields of `SFTConfig`: what to train, on what, and LoRA; named as in trl."""

from sartor.cli.flags import Flag

RUN = "what to train, and on what"
LORA = "LoRA"

_QUANTIZED = "quantized base models are not supported yet: leave it out"

OWN_FLAGS = (
    Flag("model", "str", None, "Base model: a folder or a Hub id.", RUN, aliases=("model_name_or_path",)),
    Flag(
        "data",
        "list",
        None,
        "Training rows: a file (JSONL, JSON, CSV, Parquet, Arrow), a folder of them, or a Hub id; several with their "
        "shares as a.jsonl:0.7 b.parquet:0.3.",
        RUN,
        aliases=("dataset_name",),
        repeats=True,
    ),
    Flag("split", "str", None, "Split of the training rows.", RUN, aliases=("dataset_train_split",), optional=True),
    Flag("dataset_config", "str", None, "Configuration of a Hub data set.", RUN, optional=True),
    Flag(
        "dataset_revision",
        "str",
        None,
        "Branch, tag or commit of a Hub data set.",
        RUN,
        aliases=("revision",),
        optional=True,
    ),
    Flag("eval_data", "str", None, "Evaluation rows: a file or a Hub id.", RUN, optional=True),
    Flag(
        "eval_split",
        "str",
        None,
        "Split to evaluate on, of --eval_data or else of --data.",
        RUN,
        aliases=("dataset_test_split",),
        optional=True,
    ),
    Flag(
        "resume",
        "str",
        None,
        "Go on from the newest checkpoint in output_dir that is whole, with the same command otherwise; or from this "
        "checkpoint; or if_any: from the start where there is none.",
        RUN,
        optional=True,
        alone="true",
    ),
    Flag("config", "str", None, "A YAML, JSON or TOML file with options; the command line overrides it.", RUN),
    Flag("model_revision", "str", None, "Branch, tag or commit of the model.", "model", optional=True),
    Flag(
        "dtype",
        "str",
        "auto",
        "Load the weights as this dtype, which is also saved; they train in float32 in any case.",
        "model",
        choices=("auto", "bfloat16", "float16", "float32"),
        aliases=("torch_dtype",),
        optional=True,
    ),
    Flag(
        "attn_implementation",
        "str",
        None,
        "Attention implementation. If not set, the plan chooses.",
        "model",
        optional=True,
    ),
    Flag("use_peft", "bool", False, "Train a LoRA adapter instead of the whole model.", LORA),
    Flag("lora_r", "int", 16, "Rank of the adapter.", LORA),
    Flag("lora_alpha", "int", 32, "Weight of the adapter: it counts alpha / r.", LORA),
    Flag("lora_dropout", "float", 0.05, "Dropout before the adapter.", LORA),
    Flag(
        "lora_target_modules",
        "list",
        None,
        "Modules that get an adapter, or all-linear. If not set, peft's choice.",
        LORA,
        optional=True,
    ),
    Flag(
        "lora_target_parameters",
        "list",
        None,
        "Parameters that get an adapter, such as those of experts.",
        LORA,
        optional=True,
    ),
    Flag("lora_modules_to_save", "list", None, "Modules that are trained and saved whole.", LORA, optional=True),
    Flag("lora_task_type", "str", "CAUSAL_LM", "Always CAUSAL_LM.", LORA, choices=("CAUSAL_LM",)),
    Flag("use_rslora", "bool", False, "Count alpha / sqrt(r) instead.", LORA),
    Flag("use_dora", "bool", False, "Train magnitude and direction apart (DoRA).", LORA),
    Flag("load_in_8bit", "bool", False, "", "", refused=_QUANTIZED),
    Flag("load_in_4bit", "bool", False, "", "", refused=_QUANTIZED),
    Flag("dataset_streaming", "bool", False, "", "", refused="pass an IterableDataset to SFTTrainer in Python"),
)
"""In the order of the help; what has no group is not shown there."""
