"""How good and how fast: accuracy of every erasure pattern, reports."""
