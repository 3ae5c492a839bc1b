"""Many steps.

A loop that yields events, evaluation, and what must survive an interruption.  Knows nothing of Trainer.
"""
