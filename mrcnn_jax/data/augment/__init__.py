"""Augmentation: random choices, and pure functions from samples to samples that apply them."""
