"""Sartor's version, for every room that writes it down."""

VERSION = "0.1.0"
