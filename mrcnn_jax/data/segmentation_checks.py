"""Validation of COCO segmentations: polygons and run-length encodings.

pycocotools does not check its input, and writes out of bounds for a polygon that reaches far enough. Every
segmentation that is passed to it has been checked here.
"""

from __future__ import annotations

import math
from operator import mul
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import rle

Box = tuple[float, float, float, float]  # x0 y0 x1 y1

_MAX_OUTLINE_LENGTH = 10_000_000  # pixels; pycocotools needs 40 bytes or more for each

# Problems that can leave an instance without the mask that its segmentation should give.
MASK_PROBLEMS = (
    INVALID_SEGMENTATION := "segmentation that is neither polygons nor RLE (dropped)",
    INVALID_RLE := "RLE that cannot be decoded (dropped)",
    SHORT_POLYGON := "polygon with fewer than 3 points (dropped)",
    ODD_POLYGON := "polygon with an odd number of coordinates (dropped)",
    INVALID_POLYGON := "polygon with coordinates that are not finite numbers (dropped)",
    FAR_POLYGON := "polygon reaching far beyond the image (dropped)",
    LONG_POLYGON := "polygon with an outline longer than 10 million pixels (dropped)",
    MASK_OUTSIDE_IMAGE := "segmentation without a pixel in the image (dropped)",
    MASK_OUTSIDE_BOX := "segmentation without a pixel in its bbox (dropped)",
)


class UnusableError(Exception):
    """A bbox or segmentation that cannot be used; its argument, if any, is the kind of problem."""


def check_segmentation(segmentation: Any, box: Box | None, height: int, width: int, kinds: list[str]) -> Any:
    """Return the segmentation, or those of its polygons that can be used.

    box: the mask must have a pixel in it; None skips this check. kinds: the problems of dropped polygons are appended.
    Raises UnusableError if nothing remains.
    """
    if type(segmentation) is list:
        return _check_polygons(segmentation, box, height, width, kinds)
    if type(segmentation) is not dict:
        raise UnusableError(INVALID_SEGMENTATION)
    if rle_size(segmentation) is None:
        raise UnusableError(INVALID_RLE)
    try:
        runs = rle.run_lengths(segmentation)
    except (KeyError, ValueError):
        raise UnusableError(INVALID_RLE) from None
    if box is not None:
        _check_visible(runs, box, height)
    return segmentation


def safe_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """Return the segmentation if pycocotools can decode all of it safely, else None."""
    kinds: list[str] = []
    try:
        kept = check_segmentation(segmentation, None, height, width, kinds)
    except UnusableError:
        return None
    return None if kinds else kept


def rle_size(segmentation: Any) -> list[int] | None:
    """Return `size` (height, width) of an RLE, or None if it is not two integers or this is not an RLE."""
    size = segmentation.get("size") if type(segmentation) is dict else None
    valid = type(size) is list and len(size) == 2 and type(size[0]) is int and type(size[1]) is int
    return size if valid else None


def all_finite(numbers: list[Any]) -> bool:
    """Whether all values are numbers whose sum is finite, which excludes infinity and NaN."""
    try:
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _check_polygons(
    polygons: list[Any], box: Box | None, height: int, width: int, kinds: list[str]
) -> list[list[float]]:
    """Return the usable polygons: `polygons` itself if all are usable. Raises UnusableError if none is."""
    usable, visible = [], False
    for polygon in polygons:
        if kind := _format_problem(polygon):
            kinds.append(kind)
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        bounds = (min(xs), min(ys), max(xs), max(ys))
        if kind := _extent_problem(xs, ys, bounds, max(height, width)):
            kinds.append(kind)
            continue
        usable.append(polygon)
        visible = visible or box is None or _is_certainly_visible(xs, ys, bounds, box)
    if not usable:
        raise UnusableError
    if not visible and box is not None:
        _check_visible(rle.run_lengths(coco_mask.merge(coco_mask.frPyObjects(usable, height, width))), box, height)
    return usable if len(usable) < len(polygons) else polygons


def _format_problem(polygon: Any) -> str | None:
    if type(polygon) is not list:
        return INVALID_SEGMENTATION
    if len(polygon) < 6:
        return SHORT_POLYGON
    if len(polygon) % 2:
        return ODD_POLYGON
    return None if all_finite(polygon) else INVALID_POLYGON


def _extent_problem(xs: list[float], ys: list[float], bounds: Box, reach: int) -> str | None:
    """Return what is wrong with the size of a polygon; coordinates must lie between -`reach` and 2 `reach`."""
    if min(bounds) < -reach or max(bounds) > 2 * reach:
        return FAR_POLYGON
    max_length = len(xs) * max(bounds[2] - bounds[0], bounds[3] - bounds[1])  # cheap upper bound
    return LONG_POLYGON if max_length > _MAX_OUTLINE_LENGTH and _outline_length(xs, ys) > _MAX_OUTLINE_LENGTH else None


def _outline_length(xs: list[float], ys: list[float]) -> float:
    """Length of a polygon's outline in steps from pixel to pixel, straight or diagonal."""
    steps = np.maximum(np.abs(np.diff(xs, append=xs[0])), np.abs(np.diff(ys, append=ys[0])))
    return float(steps.sum())


def _is_certainly_visible(xs: list[float], ys: list[float], bounds: Box, box: Box) -> bool:
    """Whether a polygon must cover pixels of `box`, at a tenth of the cost of rasterizing it; False means unknown.

    True for polygons inside the box that are about two pixels wide by their signed area. The signed area is the
    covered area unless the outline winds around twice, which shows in an area larger than the bounds or in a repeated
    first corner.
    """
    x0, y0, x1, y1 = bounds
    if x0 < box[0] - 1 or y0 < box[1] - 1 or x1 > box[2] + 1 or y1 > box[3] + 1:
        return False
    double_area = abs(sum(map(mul, xs, ys[1:])) - sum(map(mul, ys, xs[1:])) + xs[-1] * ys[0] - xs[0] * ys[-1])
    w, h = x1 - x0, y1 - y0
    if not 4 * (w + h) <= double_area <= 2 * w * h:
        return False
    return xs[0] not in xs[1:-1] or (xs[0], ys[0]) not in zip(xs[1:-1], ys[1:-1], strict=True)


def _check_visible(runs: np.ndarray, box: Box, height: int) -> None:
    """Raise UnusableError for a mask without a pixel, or without one among the pixels that `box` touches."""
    ends = np.cumsum(runs)
    middle = len(runs) // 4 * 2 + 1
    if middle < len(runs) and runs[middle]:  # fast path: most masks have their middle pixel in the box
        column, row = divmod(int(ends[middle]) - (int(runs[middle]) + 1) // 2, height)
        if box[0] <= column < box[2] and box[1] <= row < box[3]:
            return
    if not runs[1::2].any():
        raise UnusableError(MASK_OUTSIDE_IMAGE)
    window = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    if not rle.crop(runs, height, window).any():
        raise UnusableError(MASK_OUTSIDE_BOX)
