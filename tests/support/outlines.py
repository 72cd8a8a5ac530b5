"""Parsing and filling of SVG outlines, for the tests of the check command."""

from __future__ import annotations

import re

import numpy as np


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons by the even-odd rule; return a bool mask (h, w)."""
    found = np.zeros(shape, bool)
    xs = np.arange(shape[1]) + 0.5
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1), "an edge of a pixel, not a diagonal, and not a point"
            if x0 == x1:
                found[min(y0, y1) : max(y0, y1)] ^= xs > x0
    return found


def corners(d: str) -> list[np.ndarray]:
    """Return the polygons of an SVG path of M, l and z."""
    polygons = []
    for start, moves in re.findall(r"M([^l]+)l([^z]+)z", d):
        numbers = np.array(re.findall(r"-?\d+", moves), int).reshape(-1, 2)
        first = np.array(start.split(), int)
        polygons.append(np.concatenate([[first], first + np.cumsum(numbers, axis=0)]))
    return polygons
