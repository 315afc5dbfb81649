"""Triton model repositories: configuration and files."""
