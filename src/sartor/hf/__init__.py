"""The bridge to transformers' Trainer."""

from sartor.hf.sft_trainer import SFTTrainer

__all__ = ["SFTTrainer"]
