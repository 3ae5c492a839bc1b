"""Looks at rows before they are trained on: what they are, what is trained of them, and what is probably wrong."""
