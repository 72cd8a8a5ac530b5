"""Convolutions and their gradients in the form that XLA:CPU is fast with."""
