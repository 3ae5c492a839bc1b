"""Tiny random models, one per architecture that is claimed to train correctly, with every kind of layer it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

VOCABULARY = 67
WINDOW = 4
"""Of models with windowed layers: shorter than most of the documents."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ATTENTION = ("q_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Architecture:
    """How to make one, and what is changed from the sizes that all share."""

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Shared sizes that this configuration does not take."""
    lora: tuple[str, ...] = _ATTENTION
    """Names of layers that get an adapter."""
    modules_to_save: tuple[str, ...] = ()
    attention: str | None = None
    """Implementation asked for; None: transformers' choice."""
    after: Callable[[nn.Module], None] | None = None
    """What is done to the new model: heads without bias get one, for instance."""


def _head_bias(model: nn.Module) -> None:
    head = model.get_output_embeddings()
    model.set_output_embeddings(nn.Linear(head.in_features, head.out_features, bias=True))


_GPT2_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_DROP = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaConfig"),
    "llama, tied": Architecture("LlamaConfig", {"tie_word_embeddings": True}, lora=(*_ATTENTION, "gate_proj")),
    "llama, head with bias": Architecture("LlamaConfig", after=_head_bias),
    "llama, adapter on head": Architecture("LlamaConfig", lora=(*_ATTENTION, "lm_head")),
    "llama, head saved": Architecture("LlamaConfig", modules_to_save=("lm_head",)),
    "llama, eager": Architecture("LlamaConfig", attention="eager"),
    "qwen2": Architecture("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2, window": Architecture(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": Architecture("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_moe": Architecture("Qwen3MoeConfig", {"head_dim": 8, "num_experts": 4, **_MOE}),
    "mixtral": Architecture("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mistral": Architecture("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": Architecture(
        "Gemma2Config",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt2": Architecture("GPT2Config", {**_GPT2_NAMES, **_NO_DROPOUT}, without=_DROP, lora=("c_attn", "c_proj")),
    "phi3": Architecture("Phi3Config", {"sliding_window": WINDOW}, lora=("qkv_proj", "o_proj")),
    "olmo2": Architecture("Olmo2Config"),
    "olmo3": Architecture("Olmo3Config", {"sliding_window": WINDOW, "num_hidden_layers": 4}),
    "cohere": Architecture("CohereConfig", {"logit_scale": 0.25}),
    "granite": Architecture(
        "GraniteConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    ),
    "smollm3": Architecture("SmolLM3Config", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "gpt_oss": Architecture(
        "GptOssConfig",
        {"head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "falcon": Architecture(
        "FalconConfig", {"alibi": False, "new_decoder_architecture": False}, lora=("query_key_value", "dense")
    ),
    "bloom": Architecture("BloomConfig", {"n_head": 4, "n_layer": 2}, without=_DROP[1:], lora=("query_key_value",)),
    "llama4": Architecture(
        "Llama4TextConfig",
        {
            "head_dim": 8, "attention_chunk_size": 4, "num_local_experts": 2, "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48, "moe_layers": [1], "no_rope_layers": [1, 1, 0], "num_hidden_layers": 3,
            "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        },
    ),
    "mamba2": Architecture(
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 4},
        without=("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings"),
        lora=("in_proj",),
    ),
    "lfm2": Architecture(
        "Lfm2Config",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
        lora=("in_proj", "q_proj", "w1"),
    ),
}  # fmt: skip


def make(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A new random model in training mode, without dropout, its small parts large enough to matter."""
    import transformers

    architecture = ARCHITECTURES[name]
    sizes = {key: value for key, value in _SIZES.items() if key not in architecture.without}
    config = getattr(transformers, architecture.config)(**{**sizes, **architecture.options})
    torch.manual_seed(seed)
    extra = {} if architecture.attention is None else {"attn_implementation": architecture.attention}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **extra)
    if architecture.after is not None:
        architecture.after(model)
    _shake(model)
    return model.to(dtype).train()


def _shake(model: nn.Module) -> None:
    """Weights of 0, 1 and 0.02 hide errors: a leak through attention that barely attends, a bias that is not added."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias", ".D")):
                continue  # a state-space model's own scales
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.15 if parameter.dim() > 1 else 0.1))


def with_lora(model: Any, name: str, *, seed: int = 0) -> Any:
    """The model under an adapter that is not the zero it starts as."""
    import peft

    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        lora_dropout=0.0,
        target_modules=list(architecture.lora),
        modules_to_save=list(architecture.modules_to_save) or None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture.config == "GPT2Config",
    )
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.2)
    return wrapped.train()
