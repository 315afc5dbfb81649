"""Data: calibration inputs, the bundled real subset, and readers for standard formats."""
