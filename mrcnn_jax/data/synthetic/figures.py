"""Figures as functions that return which points are inside. All figures fit in the unit circle.

A function takes x and y, arrays that broadcast, and returns bool. The y axis points down.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

InsideFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
Points = tuple[tuple[float, float], ...]


def star(corners: int, depth: float) -> InsideFunction:
    """Return a star with `corners` outer points (radius 1) and as many inner points (radius `depth`)."""
    sector = np.pi / corners
    inner_x, inner_y = depth * np.cos(sector), depth * np.sin(sector)

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # By symmetry, map points to the half sector from an outer point (angle 0) to an inner one (angle `sector`).
        angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
        radius = np.hypot(x, y)
        px, py = radius * np.cos(angle), radius * np.sin(angle)
        return (inner_x - 1) * py - inner_y * (px - 1) >= 0

    return inside


def regular_polygon(corners: int) -> InsideFunction:
    """Return a regular polygon: a star whose inner points are the centers of the sides."""
    # For triangles exactly 0.5: cos(pi / 3) in floating point is slightly larger.
    return star(corners, 0.5 if corners == 3 else float(np.cos(np.pi / corners)))


def cross(half_width: float, reach: float) -> InsideFunction:
    """Return a cross of two bars."""
    return lambda x, y: (np.minimum(abs(x), abs(y)) <= half_width) & (np.maximum(abs(x), abs(y)) <= reach)


def ring(inner: float) -> InsideFunction:
    """Return a disc with a hole of radius `inner`."""
    return lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x, y) >= inner)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc without the part covered by another disc."""
    return (np.hypot(x, y) <= 1) & (np.hypot(x - 0.45, y) >= 0.8)


def half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Half of a disc, centered on the origin."""
    return (np.hypot(x, y - 0.45) <= 0.88) & (y <= 0.45)


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two discs and a wedge below them."""
    side, top = abs(x), y + 0.3
    disc = np.hypot(side - 0.43, top) <= 0.47
    # The side of the wedge is tangent to the disc at 45 degrees.
    wedge = (side + top <= 0.43 + 0.47 * np.sqrt(2)) & (top >= 0.47 / np.sqrt(2)) | (side <= 0.43) & (abs(top) <= 0.36)
    return disc | wedge & (top >= 0)


def gear(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc with eight teeth and a hole."""
    radius = np.hypot(x, y)
    teeth = np.cos(8 * np.arctan2(y, x)) > 0
    return (radius <= np.where(teeth, 1, 0.74)) & (radius >= 0.3)


def polygon(*corners: tuple[float, float]) -> InsideFunction:
    """Return a polygon, which can be concave, by the even-odd rule."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y0 != y1:  # a horizontal ray does not cross a horizontal side
                odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return odd

    return inside


def strokes(half_width: float, *lines: Points) -> InsideFunction:
    """Return the points within `half_width` of one of the polylines."""
    ends = [pair for line in lines for pair in itertools.pairwise(line)]
    return lambda x, y: np.any([segment_distance(x, y, a, b) <= half_width for a, b in ends], axis=0)


def segment_distance(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """Return the distance of each point to the segment from a to b, which can be equal."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return np.hypot(x - a[0] - along * dx, y - a[1] - along * dy)


class OutlineClass(NamedTuple):
    """A class of figures."""

    inside: Callable[[float], InsideFunction]  # the figure, given half the width of thin lines in radii
    smallest: float = 12.0  # diameter in pixels at which it is still distinct from all others


def _solid(inside: InsideFunction, smallest: float = 12.0) -> OutlineClass:
    return OutlineClass(lambda line: inside, smallest)


def _thin(*lines: tuple[tuple[float, float], ...], smallest: float = 12.0) -> OutlineClass:
    """Return a class of polylines, scaled so that their round ends are within the radius."""
    return OutlineClass(
        lambda line: strokes(line, *(tuple(((1 - line) * x, (1 - line) * y) for x, y in points) for points in lines)),
        smallest,
    )


OUTLINES: dict[str, OutlineClass] = {
    "circle": _solid(lambda x, y: np.hypot(x, y) <= 0.9),
    "triangle": _solid(regular_polygon(3)),
    "square": _solid(regular_polygon(4)),
    "pentagon": _solid(regular_polygon(5), 20),
    "hexagon": _solid(regular_polygon(6), 24),
    "star4": _solid(star(4, 0.35), 16),
    "star5": _solid(star(5, 0.4), 16),
    "star6": _solid(star(6, 0.5), 20),
    "star8": _solid(star(8, 0.6), 24),
    "cross": _solid(cross(0.32, 0.92)),
    "crescent": _solid(crescent),
    "ring": _solid(ring(0.45)),
    "half disc": _solid(half_disc),
    "heart": _solid(heart, 16),
    "gear": _solid(gear, 28),
    "arrow": _solid(
        polygon((1, 0), (0.15, -0.75), (0.15, -0.28), (-0.95, -0.28), (-0.95, 0.28), (0.15, 0.28), (0.15, 0.75)), 16
    ),
    "L": _solid(polygon((-0.5, -0.86), (-0.1, -0.86), (-0.1, 0.46), (0.6, 0.46), (0.6, 0.8), (-0.5, 0.8)), 14),
    "T": _solid(
        polygon(
            *((-0.75, -0.65), (0.75, -0.65), (0.75, -0.25), (0.2, -0.25)),
            *((0.2, 0.9), (-0.2, 0.9), (-0.2, -0.25), (-0.75, -0.25)),
        ),
        14,
    ),
    "U": _solid(
        polygon(
            *((-0.68, -0.72), (-0.3, -0.72), (-0.3, 0.35), (0.3, 0.35)),
            *((0.3, -0.72), (0.68, -0.72), (0.68, 0.72), (-0.68, 0.72)),
        ),
        16,
    ),
    "H": _solid(lambda x, y: (abs(x) <= 0.64) & (abs(y) <= 0.76) & ((abs(x) >= 0.26) | (abs(y) <= 0.18)), 18),
    "bar": _thin(((-1, 0), (1, 0))),
    "hoop": OutlineClass(lambda line: ring(1 - 2 * line)),
    "zigzag": _thin(((-0.95, 0.3), (-0.48, -0.4), (0, 0.35), (0.48, -0.4), (0.95, 0.3)), smallest=20),
    "stick cross": _thin(((-1, 0), (1, 0)), ((0, -1), (0, 1)), smallest=16),
    "antenna": _thin(
        *(((0, 1), (0, -1)), ((-0.6, -0.7), (0.6, -0.7)), ((-0.45, -0.2), (0.45, -0.2)), ((-0.3, 0.3), (0.3, 0.3))),
        smallest=28,
    ),
}
