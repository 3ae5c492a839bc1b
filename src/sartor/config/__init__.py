"""Every option of a training run: `SFTConfig` holds and checks them, `resolve` hands each room the few it needs."""

from sartor.config.resolve import Settings, resolve, resolved_configuration
from sartor.config.sft_config import SFTConfig

__all__ = ["SFTConfig", "Settings", "resolve", "resolved_configuration"]
