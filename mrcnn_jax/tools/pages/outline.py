"""Masks as the `d` of an SVG path, filled by the even-odd rule: exact to the digits that are written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def path(polygons: Iterable[np.ndarray], steps: int) -> str:
    """Closed polygons of corners (k, 2), in 1 / `steps` of their unit; corners that fall together are one."""
    parts = []
    for polygon in polygons:
        corners = np.rint(np.asarray(polygon) * steps).astype(np.int64)
        moves = np.diff(corners, axis=0)
        moves = moves[moves.any(axis=1)]
        numbers = " ".join(map(str, moves.ravel().tolist())).replace(" -", "-")  # as SVG allows
        parts.append(f"M{corners[0, 0]} {corners[0, 1]}l{numbers}z" if numbers else _dot(*corners[0].tolist()))
    return "".join(parts)


def trace(bitmap: np.ndarray) -> list[np.ndarray]:
    """The outlines of a bitmap (h, w) along the edges of its pixels: closed polygons (k, 2) of x, y.

    Holes are polygons too. Every corner is passed through as often as it is a corner.
    """
    padded = np.pad(np.asarray(bitmap, np.int8), 1)
    across = _segments(np.diff(padded, axis=0))  # the inside is on the right of the way
    along = _segments(np.diff(padded, axis=1).T)
    ways: tuple[dict[tuple[int, int], list[tuple[int, int]]], ...] = ({}, {})
    for y, x0, x1, inside in across.tolist():
        start, end = ((x0, y), (x1, y)) if inside > 0 else ((x1, y), (x0, y))
        ways[0].setdefault(start, []).append(end)
    for x, y0, y1, inside in along.tolist():
        start, end = ((x, y1), (x, y0)) if inside > 0 else ((x, y0), (x, y1))
        ways[1].setdefault(start, []).append(end)
    polygons = []
    while ways[0]:
        here = first = next(iter(ways[0]))
        corners: list[tuple[int, int]] = []
        while not corners or here != first or len(corners) % 2:
            corners.append(here)
            onward = ways[(len(corners) - 1) % 2]
            following = onward[here].pop()
            if not onward[here]:
                del onward[here]
            here = following
        polygons.append(np.array(corners))
    return polygons


def _segments(steps: np.ndarray) -> np.ndarray:
    """(s, 4) of row, begin, end, value: the longest runs of 1 or of -1 in the rows of `steps`, whose ends are 0."""
    changes = np.diff(steps, axis=1) != 0
    rows, begins = np.nonzero(changes & (steps[:, 1:] != 0))
    _, ends = np.nonzero(changes & (steps[:, :-1] != 0))
    return np.stack([rows, begins, ends, steps[rows, begins + 1]], axis=1)


def _dot(x: int, y: int) -> str:
    """A polygon that is smaller than a step is one step large, to be seen at all."""
    return f"M{x} {y}h1v1h-1z"
