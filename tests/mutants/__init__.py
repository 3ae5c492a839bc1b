"""Breaks the code on purpose, and looks whether a test fails: `python -m tests.mutants`."""
