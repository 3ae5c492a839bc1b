"""Optimizers: what is known of each, and their update, taken in pieces, in float32, or with states on the host."""
