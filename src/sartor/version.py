"""Sartor's own version, where rooms may ask for it: `sartor` itself names all of them, for types."""

__version__ = "0.1.0"
