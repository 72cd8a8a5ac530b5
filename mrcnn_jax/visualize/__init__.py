"""Overlays of predictions on images."""

from mrcnn_jax.visualize.overlay import ColorIndices, compare, draw

__all__ = ["ColorIndices", "compare", "draw"]
