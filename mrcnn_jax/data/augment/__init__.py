"""Augmentation: pure functions from samples to samples, and the drawing of what they shall do."""
