"""Models and tokenizers by Hub id or folder: looked at before anything is loaded, and loaded.

In: a name, and the keyword arguments that `from_pretrained` would get with it.  Out: model, tokenizer, or what can be
known of them without weights.  What it keeps true: nothing is read from a folder that leads out of itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from sartor.engine.traits import num_embeddings, num_positions
from sartor.errors import ModelError
from sartor.run import model_folder
from sartor.wording import first_line

EMBEDDING_MULTIPLE = 64
"""Rows of an embedding that new tokens made larger are a multiple of this."""


def is_adapter_folder(name: str) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return os.path.isfile(os.path.join(name, "adapter_config.json"))


def _base_of(folder: str) -> str:
    """The model that an adapter was trained on.

    Raises:
        ModelError: its configuration does not say, or cannot be read.
    """
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"the adapter in {folder!r} cannot be read: {first_line(error)}") from error
    if not base:
        raise ModelError(f"the adapter in {folder!r} does not say which model it belongs to: load both, and pass them.")
    return str(base)


def load_tokenizer(name: str, keywords: Mapping[str, Any]) -> Any:
    """The tokenizer that belongs to a model's id or folder.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if is_adapter_folder(name) and not os.path.isfile(os.path.join(name, "tokenizer_config.json")):
        name = _base_of(name)
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=keywords.get("revision"), trust_remote_code=bool(keywords.get("trust_remote_code"))
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer can be loaded from {name!r}: {first_line(error)}") from error


def load_model(name: str, keywords: Mapping[str, Any]) -> Any:
    """A causal language model by Hub id or folder; the folder of an adapter gives its base with the adapter, trainable.

    Raises:
        ModelError: it is not there, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    try:
        if is_adapter_folder(name):
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **keywords)
        return AutoModelForCausalLM.from_pretrained(name, **keywords)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {name!r}: {first_line(error)}") from error


def end_tokens(model: Any, tokenizer: Any, keywords: Mapping[str, Any]) -> list[str]:
    """Texts of the tokens at which the model's generation stops, as its generation config lists them."""
    from transformers import GenerationConfig

    if isinstance(model, str):
        try:
            listed = GenerationConfig.from_pretrained(model, revision=keywords.get("revision")).eos_token_id
        except OSError:  # many models have none, and an adapter's folder never
            return []
    else:
        listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token is not None]


def check_folders(name: str, keywords: Mapping[str, Any]) -> None:
    """See that nothing in the folder of a model, and of an adapter's base, leads out of it.

    Raises:
        ModelError: something does; or the adapter's configuration cannot be read.
    """
    model_folder.check(name)
    model_folder.check(os.path.join(name, str(keywords.get("subfolder") or "")))
    if is_adapter_folder(name):
        model_folder.check(_base_of(name))


def check_model(name: str, keywords: Mapping[str, Any]) -> None:
    """Look whether a model is there and of the right kind, without loading its weights.

    Raises:
        ModelError: it is not.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if is_adapter_folder(name):
        name = _base_of(name)
    try:
        config = AutoConfig.from_pretrained(
            name, revision=keywords.get("revision"), trust_remote_code=bool(keywords.get("trust_remote_code"))
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {name!r}: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not keywords.get("trust_remote_code"):
        raise ModelError(f"{name!r} is a {config.model_type} model, which is no causal language model.")


def limits_of(
    model: Any, keywords: Mapping[str, Any], max_length: int | None, tokenizer: Any, added: list[str]
) -> tuple[int | None, int | None]:
    """Rows that the embedding will have, and positions that the model has in a table; None: not known, or any.

    Of a model given by name they are read off its configuration, without its weights.  An adapter's folder may hold
    rows of its own, and code of a model's own may count them otherwise, so of these they are not known.
    """
    if not isinstance(model, str):
        rows, positions = num_embeddings(model), num_positions(model)
    elif is_adapter_folder(model) or keywords.get("trust_remote_code"):
        return None, None
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model, revision=keywords.get("revision"))
        rows, positions = int(config.get_text_config().vocab_size), None
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and (max_length is None or max_length > most):
            with torch.device("meta"):
                positions = num_positions(AutoModelForCausalLM.from_config(config))
    if added and len(tokenizer) > rows:  # see fit_embeddings
        rows = -(-len(tokenizer) // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE
    return rows, positions


def context_of(name: str, keywords: Mapping[str, Any]) -> int | None:
    """The longest context of a model by Hub id or folder; None where that is not said, or no configuration is there."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            name, revision=keywords.get("revision"), trust_remote_code=bool(keywords.get("trust_remote_code"))
        )
    except (OSError, ValueError):  # a folder with a tokenizer alone, or an adapter
        return None
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
