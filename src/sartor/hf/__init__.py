"""The trainer: where the rooms meet."""

from sartor.hf.sft_trainer import SFTTrainer

__all__ = ["SFTTrainer"]
