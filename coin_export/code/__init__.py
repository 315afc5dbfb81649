"""The linear code: algebra, decoding, and the description that travels inside a model repository."""
