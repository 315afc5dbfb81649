"""Encoders: from k originals to one coded model."""
