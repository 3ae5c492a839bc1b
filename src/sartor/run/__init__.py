"""Many steps.

A loop that yields events, evaluation, and what an interruption must not lose.  Knows nothing of Trainer.
"""
