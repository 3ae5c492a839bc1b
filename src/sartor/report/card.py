"""The model card: what a model is, what it was trained on and how, as the README.md of its folder.

What comes in is `CardFacts`; what goes out is Markdown with metadata that the Hub takes.  Kept true: whatever the names
are (quotes, line breaks, any script), the metadata is valid YAML and the text stays text; no folder of this machine is
named, only the last part of a local path; and nothing is claimed that is not in the facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.masking import masked_text
from sartor.records import DataSummary, Plan
from sartor.report import markdown
from sartor.report.files import write_whole
from sartor.report.licenses import license_metadata
from sartor.report.staging import CARD, FIGURES, is_hub_id, is_repository_id, public_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig

HYPERPARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "loss_type",
    "max_length",
    "packing",
    "completion_only_loss",
    "assistant_only_loss",
    "seed",
    "data_seed",
)
"""The options a card shows: those that decide what is computed.  None of them can hold a path or a token."""

_PACKAGES = ("sartor", "transformers", "torch", "datasets", "tokenizers")
_OWN_TAGS = ("generated_from_trainer", "sft", "sartor")
_EXAMPLE_QUESTION = "Explain in two sentences why the sky is blue."
_EXAMPLE_TEXT = "The sky is blue because"
_DATA_SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst"})


@dataclass(frozen=True, slots=True)
class Adapter:
    """What was trained where the weights themselves were not."""

    kind: str
    """peft's name of the method: `LORA`."""
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Losses:
    """What the log says about the loss; per target token."""

    first: float | None = None
    first_step: int | None = None
    last: float | None = None
    last_step: int | None = None
    evaluations: Mapping[str, float] = field(default_factory=dict)
    """The last evaluation loss of each set; the key is "" where there is only one."""
    mean: float | None = None
    """Over the whole run: all that a run shorter than `logging_steps` logs."""
    runtime_s: float | None = None

    @classmethod
    def of(cls, log_history: Iterable[Mapping[str, Any]]) -> Losses:
        """Pick them from `trainer.state.log_history`, or from the records of `metrics.jsonl`."""
        records = list(log_history)
        training = [record for record in records if "loss" in record]
        evaluations = {
            key.removeprefix("eval_").removesuffix("loss").rstrip("_"): float(value)
            for record in records
            for key, value in record.items()
            if key.startswith("eval_") and key.endswith("_loss")
        }
        summary: Mapping[str, Any] = next((record for record in reversed(records) if "train_runtime" in record), {})
        return cls(
            first=float(training[0]["loss"]) if training else None,
            first_step=training[0].get("step") if training else None,
            last=float(training[-1]["loss"]) if training else None,
            last_step=training[-1].get("step") if training else None,
            evaluations=evaluations,
            mean=summary.get("train_loss"),
            runtime_s=summary.get("train_runtime"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """All a card says.  The names in the second part are the keywords of `push_to_hub`, in the forms it takes them."""

    model_name: str
    base_model: str | None = None
    """A Hub id or a path; None where the model was built in code."""
    hub_model_id: str | None = None
    adapter: Adapter | None = None
    """None: all weights were trained."""
    has_chat_template: bool = True
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Option name to value; `select_hyperparameters` makes it."""
    losses: Losses = field(default_factory=Losses)
    train: DataSummary | None = None
    evaluation: Sequence[DataSummary] = ()
    plan: Plan | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[str] = ()
    """Of `staging.FIGURES`, those that lie beside the card."""

    dataset_name: str | Sequence[str] | None = None
    """Hub ids, or names of files."""
    dataset: str | Sequence[str] | None = None
    """Names for people, where they differ from the ids."""
    dataset_tags: str | Sequence[str] | None = None
    """Hub ids, as transformers calls them."""
    dataset_args: str | Sequence[str] | None = None
    tags: str | Sequence[str] | None = None
    tasks: str | Sequence[str] | None = None
    language: str | Sequence[str] | None = None
    license: str | None = None


def write_card(facts: CardFacts, folder: Path | str) -> Path:
    """Write the card to `README.md` in `folder`, in place of any that is there; returns its path.

    Raises:
        RunFolderError: the folder is missing, not writable, or the disk is full.
    """
    return write_whole(Path(folder) / CARD, masked_text(model_card(facts)))


def model_card(facts: CardFacts) -> str:
    """The whole card: metadata between `---` lines, then Markdown."""
    parts = [
        f"# {markdown.text(facts.model_name)}",
        _introduction(facts),
        f"## Quick start\n\n{_quick_start(facts)}",
        f"## Training\n\n{_training(facts)}",
    ]
    if table := _loss_table(facts.losses):
        parts.append(f"### Loss\n\n{table}")
    parts += [f"![{title}]({path})" for path, title in FIGURES.items() if path in facts.figures]
    if facts.hyperparameters:
        rows = [(f"`{name}`", markdown.shown(value)) for name, value in facts.hyperparameters.items()]
        parts.append(f"### Hyperparameters\n\n{markdown.table(('option', 'value'), rows)}")
    if facts.versions:
        rows = [(markdown.text(name), markdown.text(number)) for name, number in facts.versions.items()]
        parts.append(f"### Versions\n\n{markdown.table(('package', 'version'), rows)}")
    return f"---\n{_metadata(facts)}\n---\n\n" + "\n\n".join(parts) + "\n"


def select_hyperparameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of all options of a run those that a card shows, in its order, without those that are off or not set.

    `options` are the values of SFTConfig's fields by name; paths and tokens among them are not picked.
    """
    off = {"max_steps": -1, "label_smoothing_factor": 0.0, "packing": False, "assistant_only_loss": False}
    chosen = {}
    for name in HYPERPARAMETERS:
        value = options.get(name)
        if value is not None and not (name in off and value == off[name]):
            chosen[name] = value.value if isinstance(value, Enum) else value
    return chosen


def adapter_facts(config: PeftConfig) -> Adapter:
    """What a card says about a peft adapter."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        return Adapter(kind=str(config.peft_type.value))
    targets = config.target_modules or ()
    return Adapter(
        kind="LORA",
        rank=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
    )


def dataset_hub_id(dataset: Dataset | IterableDataset) -> str | None:
    """The Hub id that a data set was loaded from, also after `map` and `filter`; None where that is not certain.

    A Dataset does not keep its id.  Its file lies under `<cache>/<owner>___<name>/<configuration>/<version>/<commit>/`
    with the name in lower case; the spelling is that of the download with the same owner and commit.
    """
    from datasets import Dataset, config
    from huggingface_hub import constants

    if not isinstance(dataset, Dataset):  # a stream has no file of its own
        return None
    for entry in dataset.cache_files:
        path, cache = Path(entry["filename"]).resolve(), Path(config.HF_DATASETS_CACHE).resolve()
        parts = path.relative_to(cache).parts if path.is_relative_to(cache) else ()
        if len(parts) == 5 and "___" in parts[0]:
            owner, commit = parts[0].partition("___")[0], parts[3]
            downloads = Path(constants.HF_HUB_CACHE).glob(f"datasets--{owner}--*/snapshots/{commit}")
            names = {folder.parent.parent.name.removeprefix(f"datasets--{owner}--") for folder in downloads}
            if len(names) == 1:
                return f"{owner}/{names.pop()}"
    return None


def installed_versions(*more: str) -> dict[str, str]:
    """Versions of the packages that shape a run, and of `more`; what is not installed is left out."""
    found = {}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    base_model = facts.base_model if facts.base_model and is_hub_id(facts.base_model) else None
    data_sets = [name for name in _dataset_ids(facts) if _is_dataset_id(name)]
    tags = [*_OWN_TAGS, *(["lora"] if facts.adapter and facts.adapter.kind == "LORA" else [])]
    tags += [markdown.one_line(tag) for tag in (*_names(facts.tags), *_names(facts.tasks)) if markdown.one_line(tag)]
    license, license_name = license_metadata(facts.license)
    data = ModelCardData(
        base_model=base_model,
        datasets=data_sets or None,
        language=list(_names(facts.language)) or None,
        library_name="peft" if facts.adapter else "transformers",
        license=license,
        license_name=license_name,
        model_name=markdown.one_line(facts.model_name),
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
    )
    if base_model:
        data["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    return data.to_yaml().strip()


def _introduction(facts: CardFacts) -> str:
    if facts.base_model is None:
        origin = "a model that was built in code"
    elif is_hub_id(facts.base_model):
        origin = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    else:
        origin = f"`{markdown.code(public_name(facts.base_model))}`, a model from a local folder"
    what = "An adapter for" if facts.adapter else "A version of"
    data = _data_sets(facts)
    return f"{what} {origin}, made by supervised fine-tuning{f' on {data}' if data else ''} with Sartor."


def _data_sets(facts: CardFacts) -> str:
    shown = [
        f"[{name}](https://huggingface.co/datasets/{name})"
        if _is_dataset_id(name)
        else f"`{markdown.code(public_name(name))}`"
        for name in _dataset_ids(facts)
    ]
    shown += [markdown.text(name) for name in _names(facts.dataset) if name not in _dataset_ids(facts)]
    arguments = ", ".join(markdown.text(argument) for argument in _names(facts.dataset_args))
    return " and ".join(shown) + (f" ({arguments})" if shown and arguments else "")


def _quick_start(facts: CardFacts) -> str:
    has_id = facts.hub_model_id is not None and is_repository_id(facts.hub_model_id)
    model = facts.hub_model_id if has_id and facts.hub_model_id else "path/to/this/folder"
    if facts.has_chat_template:
        prompt = f'[{{"role": "user", "content": {json.dumps(_EXAMPLE_QUESTION)}}}]'
    else:
        prompt = json.dumps(_EXAMPLE_TEXT)
    code = (
        "```python\n"
        "from transformers import pipeline\n\n"
        f'generator = pipeline("text-generation", model={json.dumps(model)})\n'
        f"prompt = {prompt}\n"
        'print(generator(prompt, max_new_tokens=128, return_full_text=False)[0]["generated_text"])\n'
        "```"
    )
    notes = []
    if facts.adapter:
        notes.append("Loading the adapter needs `pip install peft`, and fetches the base model.")
        if facts.base_model is not None and not is_hub_id(facts.base_model):
            notes.append(
                "Its base model lies in a local folder, not on the Hub: put its path into `base_model_name_or_path` of "
                "`adapter_config.json`."
            )
    if facts.has_chat_template:
        notes.append(f"Or talk to it in a terminal: `sartor chat {model}`.")
    return "\n\n".join([code, *notes])


def _training(facts: CardFacts) -> str:
    lines = [f"- Method: {_method(facts)}."]
    if facts.train is not None:
        lines.append(f"- Training data: {_counts(facts.train)}.")
    lines += [f"- Evaluation data `{markdown.code(summary.name)}`: {_counts(summary)}." for summary in facts.evaluation]
    per_device = facts.hyperparameters.get("per_device_train_batch_size")
    accumulation = facts.hyperparameters.get("gradient_accumulation_steps")
    if isinstance(per_device, int) and isinstance(accumulation, int):
        lines.append(
            f"- Optimizer batch: {per_device * accumulation:,} examples; loss averaged over its target tokens."
        )
    if facts.plan is not None:
        device = facts.plan.device.partition(":")[0]
        lines.append(
            f"- Parameters in {facts.plan.parameter_dtype}, computed in {facts.plan.compute_dtype} on {device}."
        )
    if facts.losses.runtime_s is not None:
        lines.append(f"- Time: {markdown.duration(facts.losses.runtime_s)}.")
    return "\n".join(lines)


def _method(facts: CardFacts) -> str:
    adapter = facts.adapter
    if adapter is None:
        return "supervised fine-tuning (SFT) of all weights"
    name = {"LORA": "LoRA"}.get(adapter.kind, adapter.kind)
    details = [
        f"{label} {markdown.shown(value)}"
        for label, value in (("r", adapter.rank), ("alpha", adapter.alpha), ("dropout", adapter.dropout))
        if value is not None
    ]
    if adapter.targets:
        details.append("on " + ", ".join(f"`{markdown.code(target)}`" for target in adapter.targets))
    return f"supervised fine-tuning (SFT) with {name}" + (f" ({', '.join(details)})" if details else "")


def _counts(summary: DataSummary) -> str:
    text = (
        f"{summary.num_rows:,} rows ({markdown.text(summary.format.value)}), {summary.num_examples:,} examples with "
        f"{summary.num_tokens:,} tokens, of which {summary.num_targets:,} are trained; the longest has "
        f"{summary.longest_tokens:,}"
    )
    if summary.num_truncated_rows:
        text += (
            f"; {summary.num_truncated_rows:,} rows were cut by {summary.num_truncated_tokens:,} tokens, "
            f"{summary.num_truncated_targets:,} of them trained ones"
        )
    if summary.num_dropped_rows:
        text += f"; {summary.num_dropped_rows:,} rows without any target were dropped"
    if summary.num_skipped_rows:
        text += f"; {summary.num_skipped_rows:,} rows that cannot be used were left out"
    return text


def _loss_table(losses: Losses) -> str:
    rows = []
    if losses.first is not None and losses.last is not None:
        rows.append((f"training, first logged{_at(losses.first_step)}", markdown.loss_number(losses.first)))
        rows.append((f"training, last logged{_at(losses.last_step)}", markdown.loss_number(losses.last)))
    if losses.mean is not None:
        rows.append(("training, mean of the run", markdown.loss_number(losses.mean)))
    for name, loss in losses.evaluations.items():
        rows.append((f"evaluation, {markdown.text(name)}" if name else "evaluation", markdown.loss_number(loss)))
    return markdown.table(("loss per target token", "value"), rows) if rows else ""


def _at(step: int | None) -> str:
    return "" if step is None else f" (step {step:,})"


def _dataset_ids(facts: CardFacts) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*_names(facts.dataset_name), *_names(facts.dataset_tags))))


def _is_dataset_id(name: str) -> bool:
    """`train.jsonl` would do as an id, but is a file."""
    return is_hub_id(name) and Path(name).suffix.lower() not in _DATA_SUFFIXES


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
