"""The user's models: loading, checkpoints, signatures."""
