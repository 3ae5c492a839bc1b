"""Rendering with provenance: the text of a conversation, and for each character the message and field it comes from."""
