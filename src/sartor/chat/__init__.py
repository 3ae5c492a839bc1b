"""Talking to a model: loading it, reading a conversation, streaming its answer, and the terminal program around that.

Comes in: a model folder, Hub id or loaded model, and messages.  Goes out: text, piece by piece.  `sample` is the part
without a terminal; `terminal` is the part with one.
"""
