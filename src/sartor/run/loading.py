"""How many tokens a model can see at once, read off its configuration: no weights are loaded."""

from __future__ import annotations

from sartor.config import SFTConfig
from sartor.hf.construction import model_init_kwargs


def context_of(name: str, args: SFTConfig) -> int | None:
    """The longest context of a model by Hub id or folder; None where that is not said, or no configuration is there."""
    from transformers import AutoConfig

    keywords = model_init_kwargs(args)
    try:
        config = AutoConfig.from_pretrained(
            name, revision=keywords.get("revision"), trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError):  # a folder with a tokenizer alone, or an adapter
        return None
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
