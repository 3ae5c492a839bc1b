"""What a trainer is made of: tokenizer, model, adapter, and the special tokens that they must agree on.

What is changed here on model and tokenizer is what trl changes: the eos token of model and generation config, a pad
token, tags.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase, set_seed

from sartor import compat
from sartor.config import Settings, SFTConfig, resolve
from sartor.errors import ConfigurationError, ModelError, SartorError
from sartor.hf.checks import Given, problems_of
from sartor.run import loading, model_folder
from sartor.run.preparation import Preparation, hub_id, skips_preparation
from sartor.run.saving import check_folder
from sartor.wording import first_line

T = TypeVar("T")

TAGS = ("trl", "sft", "sartor")
"""Model tags, trl's own among them: the Hub's filters for SFT models look for these."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a trainer is made of."""

    settings: Settings
    model: Any
    tokenizer: Any
    preparation: Preparation
    train_dataset: Any
    eval_dataset: Any
    dataset_id: str | None
    """The Hub id that the training data came from."""


def build(
    given: Given,
    args: SFTConfig,
    *,
    processing_class: Any,
    peft_config: Any,
    formatting_func: Callable[[Any], str] | None,
) -> Parts:
    """Make the parts, in an order in which everything cheap is checked before a model given by name is loaded.

    Raises:
        SartorError: one, or a ConfigurationError that lists all that was found.
    """
    model, quantization = given.model, given.quantization_config
    problems = Problems()
    settings = problems.collect(lambda: resolve(args))
    for problem in problems_of(args, given):
        problems.add(ConfigurationError(problem))
    problems.collect(lambda: check_folder(args.output_dir))
    problems.collect(lambda: check_peft_config(model, peft_config))
    keywords = problems.collect(lambda: model_init_kwargs(args, quantization)) or {}
    if isinstance(model, str):
        loading.check_folders(model, keywords)  # before anything in them is read
        problems.collect(lambda: loading.check_model(model, keywords))
    tokenizer = problems.collect(lambda: _tokenizer(model, args, processing_class))
    problems.raise_any()
    assert settings is not None
    assert tokenizer is not None
    for name in (tokenizer.name_or_path, "" if isinstance(model, str) else compat.name_or_path(model)):
        model_folder.check(name or "")
    added: list[str] = []
    eos_before = tokenizer.eos_token
    preparation = Preparation(
        tokenizer,
        settings.data,
        settings.eval_data,
        formatting_func=formatting_func,
        skips=skips_preparation(args.dataset_kwargs),
        has_collator=given.data_collator is not None,
        end_tokens=loading.end_tokens(model, tokenizer, keywords),
    )
    if args.chat_template_path is not None:
        added = problems.collect(lambda: apply_template(tokenizer, str(args.chat_template_path))) or []
    problems.collect(lambda: set_eos(tokenizer, args.eos_token))
    limits = problems.collect(lambda: loading.limits_of(model, keywords, args.max_length, tokenizer, added))
    num_embeddings, num_positions = limits or (None, None)
    preparation.limit(num_embeddings, num_positions)
    train = problems.collect(lambda: preparation.prepare(given.train_dataset, "train"))
    evaluation = problems.collect(lambda: preparation.prepare_evaluation(given.eval_dataset))
    problems.collect(lambda: set_pad(tokenizer, args.pad_token))
    problems.collect(lambda: check_special_tokens(tokenizer, num_embeddings))
    problems.raise_any()
    set_seed(args.seed)  # adapters are initialised at random
    if isinstance(model, str):
        model = loading.load_model(model, keywords)
    check_device_map(model)
    fit_embeddings(model, tokenizer, added)
    if peft_config is not None:
        model = wrap_adapter(model, peft_config, added, tokenizer)
    new_eos = args.eos_token is not None or tokenizer.eos_token != eos_before
    align_model(model, tokenizer, new_eos=new_eos)
    return Parts(settings, model, tokenizer, preparation, train, evaluation, hub_id(given.train_dataset))


class Problems:
    """User errors, collected so that they can be told at once."""

    def __init__(self) -> None:
        self._found: list[SartorError] = []

    def add(self, error: SartorError) -> None:
        """One more."""
        self._found.append(error)

    def collect(self, action: Callable[[], T]) -> T | None:
        """What `action` returns, or None where it raises a user error, which is kept."""
        try:
            return action()
        except SartorError as error:
            self._found.append(error)
            return None

    def raise_any(self) -> None:
        """Raise what was found: a single error as it is."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise ConfigurationError([str(error) for error in self._found])


def _tokenizer(model: Any, args: SFTConfig, processing_class: Any) -> Any:
    """The one that was passed, else the model's own."""
    if processing_class is None:
        name = model if isinstance(model, str) else compat.name_or_path(model)
        if not name:
            raise ConfigurationError(
                "processing_class is required for a model that was built in code: pass its tokenizer."
            )
        return loading.load_tokenizer(name, model_init_kwargs(args))
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ConfigurationError(
            f"processing_class must be a tokenizer, not {type(processing_class).__name__}: models of images or "
            "sound are not supported."
        )
    refuse_secret_tokens(processing_class)
    return processing_class


def refuse_secret_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that has an access token in its vocabulary, which is saved with it.

    transformers takes any argument of `from_pretrained` whose name ends in `_token` for a special token, but `token`.

    Raises:
        ConfigurationError: it has.
    """
    found = sorted({"use_auth_token", "hub_token", "access_token", "api_token"} & tokenizer.special_tokens_map.keys())
    if found:
        raise ConfigurationError(
            f"processing_class was loaded with {found[0]}=, which transformers took for a special token and would save "
            "in tokenizer.json: load the tokenizer with token= instead."
        )


def model_init_kwargs(args: SFTConfig, quantization_config: Any = None) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained`.

    The user's, `trust_remote_code`, and the dtype the weights were published in.
    """
    keywords = dict(args.model_init_kwargs or {}) if not isinstance(args.model_init_kwargs, str) else {}
    if quantization_config is not None:
        if "quantization_config" in keywords:
            raise ConfigurationError(
                "quantization_config is given both to the trainer and in model_init_kwargs: give it once, to the "
                "trainer."
            )
        keywords["quantization_config"] = quantization_config
    keywords.setdefault("trust_remote_code", args.trust_remote_code)
    keywords.setdefault("dtype", "auto")
    return keywords


def check_device_map(model: Any) -> None:
    """Refuse a model that was spread over several devices, or offloaded."""
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1 or devices & {"disk", "meta"}:
        raise ModelError(
            f"the model was loaded over {', '.join(sorted(devices))}: training over several devices, or with "
            "weights offloaded, is "
            "not supported yet. Load it without device_map, or with device_map={'': 0}."
        )


def apply_template(tokenizer: Any, path: str) -> list[str]:
    """Take the chat template of a .jinja file, a folder or a Hub id.

    Returns tokens that were added to the vocabulary.
    """
    if os.path.isfile(path) and path.endswith((".jinja", ".j2")):
        with open(path, encoding="utf-8") as file:
            tokenizer.chat_template = file.read()
        return []
    from transformers import AutoTokenizer

    model_folder.check(path)
    try:
        source = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"chat_template_path={path!r} is neither a .jinja file nor a folder or Hub id with a tokenizer: "
            f"{first_line(error)}"
        ) from error
    if source.chat_template is None:
        raise ConfigurationError(f"chat_template_path={path!r}: the tokenizer there has no chat template.")
    tokenizer.chat_template = source.chat_template
    added = [token for token in source.added_tokens_decoder.values() if token.content not in tokenizer.get_vocab()]
    tokenizer.add_tokens(added)
    tokenizer.eos_token = source.eos_token
    return [token.content for token in added]


def fit_embeddings(model: Any, tokenizer: Any, added: list[str]) -> None:
    """Give new tokens rows in the embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    if added and len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=loading.EMBEDDING_MULTIPLE)


def check_special_tokens(tokenizer: Any, rows: int | None) -> None:
    """See that the tokens that end answers and fill batches have rows in the embedding.

    Raises:
        ConfigurationError: one has none.
    """
    for name in ("eos", "pad", "bos"):
        token, number = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
        if rows is not None and number is not None and number >= rows:
            raise ConfigurationError(
                f"the tokenizer's {name} token {token!r} has the id {number:,}, and the model's embedding has {rows:,} "
                "rows: call model.resize_token_embeddings(len(tokenizer)), or pass the tokenizer that belongs to the "
                f"model, or choose another {name} token."
            )


def set_eos(tokenizer: Any, eos_token: str | None) -> None:
    """`SFTConfig.eos_token` becomes the tokenizer's.

    Raises:
        ConfigurationError: it is not in the vocabulary.
    """
    if eos_token is None:
        return
    if eos_token not in tokenizer.get_vocab():
        raise ConfigurationError(
            f"eos_token={eos_token!r} is not in the tokenizer's vocabulary: choose a token that is, or add it first."
        )
    tokenizer.eos_token = eos_token


def set_pad(tokenizer: Any, pad_token: str | None) -> None:
    """`SFTConfig.pad_token`, the tokenizer's own, or its eos, in this order.

    Raises:
        ConfigurationError: the one asked for is not in the vocabulary, or there is none at all.
    """
    chosen = pad_token or tokenizer.pad_token or tokenizer.eos_token
    if chosen is None:
        raise ConfigurationError("the tokenizer has neither a pad nor an eos token: set eos_token or pad_token.")
    if chosen not in tokenizer.get_vocab():
        raise ConfigurationError(f"pad_token={chosen!r} is not in the tokenizer's vocabulary: choose a token that is.")
    tokenizer.pad_token = chosen


def align_model(model: Any, tokenizer: Any, *, new_eos: bool) -> None:
    """Mirror eos and pad on the model's configurations, as trl does.

    The generation config may list several eos tokens, each of which ends an answer: a new one is put first, the
    others stay.
    """
    config = model.config.get_text_config()
    if new_eos:
        config.eos_token_id = tokenizer.eos_token_id
        listed = model.generation_config.eos_token_id
        listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
        if tokenizer.eos_token_id not in listed:
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, *listed]
    config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def check_peft_config(model: Any, peft_config: Any) -> None:
    """See that an adapter can be put on the model.

    Raises:
        ConfigurationError: it is no `PeftConfig`, or the model already is a `PeftModel`, or the folder of one.
    """
    from peft import PeftConfig, PeftModel

    if peft_config is None:
        return
    if not isinstance(peft_config, PeftConfig):
        raise ConfigurationError(
            f"peft_config must be a peft.PeftConfig (peft.LoraConfig, say), not {type(peft_config).__name__}."
        )
    if isinstance(model, PeftModel) or (isinstance(model, str) and loading.is_adapter_folder(model)):
        raise ConfigurationError(
            "the model already is a PeftModel, and peft_config is given too: leave peft_config out to train the "
            "adapter that is there, or merge it first (model.merge_and_unload())."
        )


def wrap_adapter(model: Any, peft_config: Any, added_tokens: list[str], tokenizer: Any) -> Any:
    """A model with the adapter that `peft_config` describes, which `check_peft_config` has seen."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    if added_tokens:
        _train_added_tokens(peft_config, tokenizer.convert_tokens_to_ids(added_tokens))
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, peft_config)


def _train_added_tokens(peft_config: Any, token_ids: list[int]) -> None:
    """New tokens have untrained embeddings: an adapter must train their rows, and the head."""
    indices = dict(peft_config.trainable_token_indices or {})
    indices["embed_tokens"] = [*indices.get("embed_tokens", []), *token_ids]
    peft_config.trainable_token_indices = indices
    saved = list(peft_config.modules_to_save or [])
    peft_config.modules_to_save = saved if "lm_head" in saved else [*saved, "lm_head"]
