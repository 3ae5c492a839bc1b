"""A whole training without transformers' Trainer.

Session, planning, train loop, evaluation, recovery, checkpoints, and going on from them.
"""
