"""Figures as functions that say which points lie inside. Every one fits in a circle of radius 1 around the origin.

A function takes x and y, arrays that are broadcast to one another, and returns bool. The y axis points down.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

InsideFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
Points = tuple[tuple[float, float], ...]


def star(corners: int, depth: float) -> InsideFunction:
    """The figure that joins `corners` outer points (radius 1) and as many inner points (radius `depth`)."""
    sector = np.pi / corners
    inner_x, inner_y = depth * np.cos(sector), depth * np.sin(sector)

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Every point is folded into the half sector between an outer point (angle 0) and an inner one (angle `sector`).
        angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
        radius = np.hypot(x, y)
        px, py = radius * np.cos(angle), radius * np.sin(angle)
        return (inner_x - 1) * py - inner_y * (px - 1) >= 0

    return inside


def regular_polygon(corners: int) -> InsideFunction:
    """The regular polygon: a star whose inner points lie in the middle of its sides."""
    return star(corners, 0.5 if corners == 3 else float(np.cos(np.pi / corners)))  # cos(pi / 3) is a little more


def cross(half_width: float, reach: float) -> InsideFunction:
    """Two bars at a right angle."""
    return lambda x, y: (np.minimum(abs(x), abs(y)) <= half_width) & (np.maximum(abs(x), abs(y)) <= reach)


def ring(inner: float) -> InsideFunction:
    """A disc with a hole of this radius."""
    return lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x, y) >= inner)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc out of which another one was bitten."""
    return (np.hypot(x, y) <= 1) & (np.hypot(x - 0.45, y) >= 0.8)


def half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc cut through the middle, moved so that it turns about its own."""
    return (np.hypot(x, y - 0.45) <= 0.88) & (y <= 0.45)


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two discs and a wedge that touches both."""
    side, top = abs(x), y + 0.3
    disc = np.hypot(side - 0.43, top) <= 0.47
    # The wedge's side leaves the disc at 45 degrees, where the two have the same direction.
    wedge = (side + top <= 0.43 + 0.47 * np.sqrt(2)) & (top >= 0.47 / np.sqrt(2)) | (side <= 0.43) & (abs(top) <= 0.36)
    return disc | wedge & (top >= 0)


def gear(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc with eight teeth and a hole."""
    radius = np.hypot(x, y)
    teeth = np.cos(8 * np.arctan2(y, x)) > 0
    return (radius <= np.where(teeth, 1, 0.74)) & (radius >= 0.3)


def polygon(*corners: tuple[float, float]) -> InsideFunction:
    """A polygon that may have dents, by the even-odd rule."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y0 != y1:  # a ray to the right does not cross a level side
                odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return odd

    return inside


def strokes(half_width: float, *lines: Points) -> InsideFunction:
    """Everything that lies within `half_width` of one of these broken lines."""
    ends = [pair for line in lines for pair in itertools.pairwise(line)]
    return lambda x, y: np.any([segment_distance(x, y, a, b) <= half_width for a, b in ends], axis=0)


def segment_distance(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """How far each point is from the segment between a and b, which may be one point."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return np.hypot(x - a[0] - along * dx, y - a[1] - along * dy)
