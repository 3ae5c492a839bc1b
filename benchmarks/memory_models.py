"""Configurations that memory is measured and foreseen for.

Small ones of many architectures, and five published ones.
"""

from __future__ import annotations

from typing import Any

_SIZES: dict[str, Any] = {
    "vocab_size": 8_192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2_048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 256}
_GPT2 = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 2_048}
_NOT_GPT2 = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)

SMALL: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("LlamaConfig", {}, ()),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}, ()),
    "qwen2": ("Qwen2Config", {}, ()),
    "qwen3": ("Qwen3Config", {"head_dim": 64, "tie_word_embeddings": True}, ()),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 64, "num_experts": 8, **_MOE}, ()),
    "mistral": ("MistralConfig", {"sliding_window": 128}, ()),
    "gemma2": ("Gemma2Config", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 128}, ()),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        (),
    ),
    "gpt2": ("GPT2Config", _GPT2, _NOT_GPT2),
    "phi3": ("Phi3Config", {}, ()),
    "olmo2": ("Olmo2Config", {}, ()),
    "olmo3": ("Olmo3Config", {"sliding_window": 128}, ()),
    "granite": ("GraniteConfig", {}, ()),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}, ()),
    "falcon": ("FalconConfig", {"alibi": False, "new_decoder_architecture": False}, ()),
    "gpt_oss": ("GptOssConfig", {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2}, ()),
    "lfm2": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        (),
    ),
    "mamba2": (
        "Mamba2Config",
        {"num_heads": 16, "head_dim": 32, "state_size": 32, "n_groups": 2, "expand": 2, "chunk_size": 64},
        ("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings"),
    ),
}
"""Name to (configuration class, what differs from the sizes all share, sizes it does not take)."""

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "LlamaConfig",
        {
            "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1_536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
            "max_position_embeddings": 8_192, "rms_norm_eps": 1e-5, "pad_token_id": 2,
        },
    ),
    "SmolLM2-360M": (
        "LlamaConfig",
        {
            "vocab_size": 49_152, "hidden_size": 960, "intermediate_size": 2_560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "tie_word_embeddings": True,
            "max_position_embeddings": 8_192,
        },
    ),
    "Qwen3-0.6B": (
        "Qwen3Config",
        {
            "vocab_size": 151_936, "hidden_size": 1_024, "intermediate_size": 3_072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
            "max_position_embeddings": 40_960,
        },
    ),
    "Qwen3-4B": (
        "Qwen3Config",
        {
            "vocab_size": 151_936, "hidden_size": 2_560, "intermediate_size": 9_728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
            "max_position_embeddings": 40_960,
        },
    ),
    "Gemma-3-4B text": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262_208, "hidden_size": 2_560, "intermediate_size": 10_240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1_024,
            "query_pre_attn_scalar": 256, "max_position_embeddings": 131_072,
        },
    ),
    "Llama-3.1-8B": (
        "LlamaConfig",
        {
            "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        },
    ),
    "Qwen3-30B-A3B": (
        "Qwen3MoeConfig",
        {
            "vocab_size": 151_936, "hidden_size": 2_048, "intermediate_size": 6_144, "moe_intermediate_size": 768,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 40_960,
        },
    ),
}  # fmt: skip
"""As their publishers configured them, written by hand: no hub is asked."""


def small(name: str) -> Any:
    """The configuration of a small model."""
    import transformers

    kind, options, without = SMALL[name]
    sizes = {key: value for key, value in _SIZES.items() if key not in without}
    return getattr(transformers, kind)(**{**sizes, **options})


def published(name: str) -> Any:
    """The configuration of a published model."""
    import transformers

    kind, options = PUBLISHED[name]
    return getattr(transformers, kind)(**options)
