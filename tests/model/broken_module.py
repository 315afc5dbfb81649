"""Fails when imported."""

raise OSError("a library is missing")
