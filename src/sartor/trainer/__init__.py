"""The trainer: where the rooms meet."""

from sartor.trainer.sft_trainer import SFTTrainer

__all__ = ["SFTTrainer"]
