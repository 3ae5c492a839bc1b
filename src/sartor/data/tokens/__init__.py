"""Tokens: texts through the tokenizer, where in a text its tokens are, and tokenized rows as flat arrays."""
