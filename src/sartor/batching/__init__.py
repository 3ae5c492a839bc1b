"""From examples to micro-batches: order, cuts by tokens, packing.  Pure functions on lengths and ids."""
