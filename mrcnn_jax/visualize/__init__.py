"""Overlays of predictions on images."""

from mrcnn_jax.visualize.overlay import compare, draw

__all__ = ["compare", "draw"]
