"""Sums over points of squared per-point gradients, by kind of layer."""
