"""Convolutions and their gradients in formulations that are fast with XLA:CPU."""
