"""Masks as SVG paths, filled by the even-odd rule."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def svg_path(polygons: Iterable[np.ndarray], steps: int) -> str:
    """Return the `d` of a path of closed polygons (k, 2), rounded to 1 / `steps` of a unit."""
    parts = []
    for polygon in polygons:
        corners = np.rint(np.asarray(polygon) * steps).astype(np.int64)
        moves = np.diff(corners, axis=0)
        moves = moves[moves.any(axis=1)]  # corners that coincide after rounding are one
        numbers = " ".join(map(str, moves.ravel().tolist())).replace(" -", "-")  # as SVG allows
        parts.append(f"M{corners[0, 0]} {corners[0, 1]}l{numbers}z" if numbers else _dot(*corners[0].tolist()))
    return "".join(parts)


def trace(bitmap: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a bitmap (h, w) along its pixel edges, as closed polygons (k, 2) of x y.

    Holes are polygons too. Where two pixels touch at a corner, polygons pass through that corner twice.
    """
    padded = np.pad(np.asarray(bitmap, np.int8), 1)
    horizontal = _segments(np.diff(padded, axis=0))  # directed: the inside is on the right
    vertical = _segments(np.diff(padded, axis=1).T)
    # Directed edges by their start; outlines alternate between horizontal and vertical edges.
    edges: tuple[dict[tuple[int, int], list[tuple[int, int]]], ...] = ({}, {})
    for y, x0, x1, inside in horizontal.tolist():
        start, end = ((x0, y), (x1, y)) if inside > 0 else ((x1, y), (x0, y))
        edges[0].setdefault(start, []).append(end)
    for x, y0, y1, inside in vertical.tolist():
        start, end = ((x, y1), (x, y0)) if inside > 0 else ((x, y0), (x, y1))
        edges[1].setdefault(start, []).append(end)
    polygons = []
    while edges[0]:
        polygons.append(_take_polygon(edges))
    return polygons


def _take_polygon(edges: tuple[dict[tuple[int, int], list[tuple[int, int]]], ...]) -> np.ndarray:
    """Remove one closed polygon from the directed edges and return its corners (k, 2)."""
    corner = first = next(iter(edges[0]))
    corners: list[tuple[int, int]] = []
    while not corners or corner != first or len(corners) % 2:
        outgoing = edges[len(corners) % 2]
        corners.append(corner)
        following = outgoing[corner].pop()
        if not outgoing[corner]:
            del outgoing[corner]
        corner = following
    return np.array(corners)


def _segments(steps: np.ndarray) -> np.ndarray:
    """Return (s, 4) row, begin, end, value: the longest runs of 1 or of -1 in `steps`, whose outer columns are 0."""
    changes = np.diff(steps, axis=1) != 0
    rows, begins = np.nonzero(changes & (steps[:, 1:] != 0))
    _, ends = np.nonzero(changes & (steps[:, :-1] != 0))
    return np.stack([rows, begins, ends, steps[rows, begins + 1]], axis=1)


def _dot(x: int, y: int) -> str:
    """Path of a polygon that is smaller than a step: a square of one step, so that it is visible."""
    return f"M{x} {y}h1v1h-1z"
