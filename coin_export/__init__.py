"""Erasure-coded fan-out inference for NVIDIA Triton."""

__version__ = "0.1.0"
