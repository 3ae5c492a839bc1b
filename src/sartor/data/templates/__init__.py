"""Chat templates: rendering as transformers does, and rendering that knows where each character comes from."""
