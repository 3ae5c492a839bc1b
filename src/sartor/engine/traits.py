"""What this model is: the one place that asks a model's configuration and modules questions.

In: a transformers causal language model, plain or wrapped by peft.  Out: one frozen `ModelTraits`.  Everything that the
rest of the engine needs to know about an architecture is a field here, so that `getattr` on models stays in this file.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sartor import compat
from sartor.errors import ModelError

# Model types whose attention was proven, per parameter and against a float64 reference, to be reproduced by our
# per-document attention (tests/engine/test_gradients.py holds the proof; add a type there first).
OWN_ATTENTION_TYPES = frozenset(
    {
        "cohere",
        "gemma3_text",
        "gpt2",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
    }
)

# Kinds of layers that our explicit block mask knows how to draw.
_DRAWN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """One model, as far as the engine cares."""

    model_type: str
    num_layers: int
    hidden_size: int
    vocabulary_size: int
    sliding_window: int | None
    """Tokens that a windowed layer sees, or None where no layer is windowed."""
    attention: str
    """transformers' name of the implementation that the model was loaded with."""
    honoured_by_own_attention: bool
    logit_scale: float
    """The head's output is multiplied by this (Cohere) ..."""
    logit_softcap: float | None
    """... and then squashed to c * tanh(logits / c) (Gemma 2)."""
    is_adapter: bool
    num_experts: int
    accepts_positions: bool
    """Whether the decoder's forward takes `position_ids`."""
    layer_types: tuple[str, ...]
    balance_loss: Callable[..., torch.Tensor] | None
    """The architecture's own load-balancing loss over router logits, where it has one."""
    router_aux_loss_coef: float
    experts_per_token: int
    num_non_embedding_parameters: int
    """Weights of the layers: 6 FLOP each per token, forward and backward."""
    num_attention_features: int
    """heads x head width: attention costs 12 FLOP each per layer, token and token attended to, before causality."""
    has_drawn_mask: bool = True
    """Whether every layer's mask is one that `layout` can draw: causal, or causal within the window."""
    rope_switch_tokens: int | None = None
    """Where rotary frequencies depend on the longest document of a micro-batch (`longrope`, `dynamic`): the length at
    which they switch.  Documents up to it are exact beside any others; None: the frequencies never change."""


def base_model(model: nn.Module) -> Any:
    """The transformers model itself: what peft wraps, or the model as it is.

    Raises:
        ModelError: for peft methods that put virtual tokens before the prompt; the engine has no layout for them.
    """
    if not is_adapter(model):
        return model
    if bool(model.active_peft_config.is_prompt_learning):  # type: ignore[union-attr]
        raise ModelError(
            "prompt learning (prefix tuning, prompt tuning, p-tuning) is not supported: it puts virtual tokens before "
            "every prompt. Use LoRA, or another method that changes the model's layers."
        )
    return model.get_base_model()  # type: ignore[operator]


def is_adapter(model: nn.Module) -> bool:
    """Whether `model` is a `peft.PeftModel`; does not import peft where nobody else did."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def decoder(model: nn.Module) -> nn.Module:
    """The part of the model that maps token ids to the hidden states that enter the head.

    Raises:
        ModelError: the model has no such part.
    """
    inner = base_model(model)
    found = [
        inner.get_decoder() if hasattr(inner, "get_decoder") else None,
        getattr(inner, getattr(inner, "base_model_prefix", ""), None),
        getattr(inner, "model", None),  # Llama 4 has another prefix than attribute
    ]
    for candidate in found:
        if candidate is not None and candidate is not inner:
            return candidate
    raise ModelError(
        f"{type(inner).__name__} is not a causal language model of decoder and head; load it with AutoModelForCausalLM."
    )


def output_head(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits.

    Where an adapter trains a copy of the head (`modules_to_save=["lm_head"]`) it is that copy, a plain matrix; where
    an adapter adds to the head, it is peft's layer around both.

    Raises:
        ModelError: the model has none.
    """
    head = base_model(model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(base_model(model)).__name__} has no output head; load it with AutoModelForCausalLM.")
    return _trained_copy(head) if is_adapter(model) else head


def _trained_copy(head: nn.Module) -> nn.Module:
    """The copy that peft's wrapper would call, as long as an adapter is active; else the module as it is."""
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(head, ModulesToSaveWrapper) or head.disable_adapters or not head.active_adapters:
        return head
    return head.modules_to_save[head.active_adapters[0]]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module's own mode afterwards: a caller may have frozen single layers."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def read_traits(model: nn.Module) -> ModelTraits:
    """Look at a model once.

    Raises:
        ModelError: the model is no causal language model, or of a kind the engine cannot train correctly.
    """
    inner = base_model(model)
    decoder_module = decoder(model)
    output_head(model)
    config = inner.config.get_text_config()
    attention = str(compat.attention_of(config))
    layer_types = tuple(getattr(config, "layer_types", None) or ())
    softcap = _first(config, "attn_logit_softcapping", "attention_logit_cap")
    heads = int(_first(config, "num_attention_heads", "n_head") or 0)
    hidden_size = int(_first(config, "hidden_size", "n_embd", "d_model") or 0)
    head_width = int(getattr(config, "head_dim", None) or hidden_size // max(1, heads))
    embedding_ids = {id(p) for p in inner.get_input_embeddings().parameters()}
    return ModelTraits(
        model_type=str(config.model_type),
        num_layers=int(_first(config, "num_hidden_layers", "n_layer") or 0),
        hidden_size=hidden_size,
        vocabulary_size=int(config.vocab_size),
        sliding_window=_sliding_window(config, layer_types),
        attention=attention,
        honoured_by_own_attention=config.model_type in OWN_ATTENTION_TYPES and attention == "sdpa" and not softcap,
        logit_scale=_logit_scale(config),
        logit_softcap=_first(config, "final_logit_softcapping", "output_logit_soft_cap"),
        is_adapter=is_adapter(model),
        num_experts=int(_first(config, "num_experts", "num_local_experts", "n_routed_experts") or 0),
        accepts_positions="position_ids" in inspect.signature(decoder_module.forward).parameters,
        layer_types=layer_types,
        balance_loss=_balance_loss(inner, config),
        router_aux_loss_coef=float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0),
        experts_per_token=int(_first(config, "num_experts_per_tok", "num_experts_per_token") or 0),
        num_non_embedding_parameters=sum(
            p.numel() for p in decoder_module.parameters() if id(p) not in embedding_ids and p.dim() > 1
        ),
        num_attention_features=heads * head_width,
        has_drawn_mask=_DRAWN_LAYER_TYPES.issuperset(layer_types),
        rope_switch_tokens=_rope_switch_tokens(config),
    )


def num_embeddings(model: Any) -> int:
    """Token ids that the model can look up."""
    return int(base_model(model).get_input_embeddings().weight.shape[0])


def num_positions(model: Any) -> int | None:
    """Positions that the model has in a table, learned (GPT-2, OPT) or fixed (GPT-J); None: it computes any.

    Models with rotary or relative positions go on beyond `max_position_embeddings`, however well.
    """
    inner = base_model(model)
    config = inner.config.get_text_config()
    most = _first(config, "max_position_embeddings", "n_positions")
    if not most or not hasattr(inner, "get_input_embeddings"):
        return None
    tokens = inner.get_input_embeddings()
    tables = [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for module in inner.modules()
        if isinstance(module, nn.Embedding) and module is not tokens
    ]
    tables += [buffer.shape[0] for name, buffer in inner.named_buffers() if name.endswith("embed_positions")]
    return int(most) if int(most) in tables else None


def _first(config: Any, *names: str) -> Any:
    """The first of several fields that is there and not None: architectures name the same thing differently."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def _sliding_window(config: Any, layer_types: tuple[str, ...]) -> int | None:
    """Qwen's configurations carry a window that no layer uses."""
    window = _first(config, "sliding_window", "attention_window_size")
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    if layer_types and not any("sliding" in kind for kind in layer_types):
        return None
    return int(window)


def _rope_switch_tokens(config: Any) -> int | None:
    """transformers takes the largest position of the whole micro-batch to choose between two sets of frequencies."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    limits = [
        int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in nested or [parameters]
        if rope.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits) if limits else None


def _logit_scale(config: Any) -> float:
    """Cohere multiplies logits by `logit_scale`, Granite divides by `logits_scaling`, Falcon-H1 multiplies too."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return float(_first(config, "logit_scale", "lm_head_multiplier") or 1.0)


def _balance_loss(inner: nn.Module, config: Any) -> Callable[..., torch.Tensor] | None:
    """transformers defines it beside the model, once per architecture with experts."""
    if not hasattr(config, "output_router_logits"):
        return None
    return getattr(sys.modules[type(inner).__module__], "load_balancing_loss_func", None)


def has_own_saving(model: Any) -> bool:
    """Whether `save_pretrained` does more for a model of transformers than to write its tensors."""
    from transformers import PreTrainedModel

    return (
        type(model).save_pretrained is not PreTrainedModel.save_pretrained
        or "save_pretrained" in vars(model)
        or model.is_remote_code()
        or getattr(model, "hf_quantizer", None) is not None
        or compat.has_inner_adapter(model)
        or hasattr(model, "hf_device_map")
        or getattr(model.config, "distributed_config", None) is not None
        or compat.is_tensor_parallel(model)
    )
