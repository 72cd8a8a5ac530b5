"""Instance masks of one image as polygons or bitmaps, their transformations, and their rasterization.

Flips, crops and scales transform the polygons and bitmaps without loss. They are rasterized at the end, inside boxes or
windows, never in the whole image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import rle

_MAX_DISTANCE = 4096  # pixels; polygons are clipped at this distance from a raster


class Raster(NamedTuple):
    """A mask as a bitmap of a part of the image; outside of it the mask is 0."""

    bitmap: np.ndarray  # (h, w) uint8, 0 or 1
    window: np.ndarray  # (4,) float64, x0 y0 x1 y1 of the bitmap in the image


Masks = list[list[np.ndarray] | Raster]  # of n instances: polygons (p, 2) float64, none for no mask, or a raster


def has_mask(masks: Masks) -> np.ndarray:
    """Return which instances have a mask, (n,) bool."""
    return np.array([bool(mask) for mask in masks], bool)


def read_masks(segmentations: Sequence[Any], boxes: np.ndarray, height: int) -> Masks:
    """Return the masks of COCO segmentations: polygons, and RLE as bitmaps of the pixels that their boxes touch.

    segmentations: of n instances; an empty list or None for an instance without a mask. boxes: (n, 4), inside the
    image. height: of the image.
    """
    return [_read_mask(*pair, height) for pair in zip(segmentations, boxes, strict=True)]


def _read_mask(segmentation: Any, box: np.ndarray, height: int) -> list[np.ndarray] | Raster:
    if isinstance(segmentation, dict):
        window = pixel_windows(box)
        bitmap = rle.crop(rle.run_lengths(segmentation), height, tuple(window.tolist()))
        return Raster(bitmap, window.astype(np.float64))
    return [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation or ()]


def annotation_area(annotation: dict[str, Any], height: int, width: int) -> float:
    """Return the area of a validated annotation in pixels: `area`, else the area of the mask, else of the box.

    height, width: of the image.
    """
    if annotation.get("area"):
        return float(annotation["area"])
    segmentation, pixels = annotation.get("segmentation"), 0
    if isinstance(segmentation, dict):
        pixels = int(rle.run_lengths(segmentation)[1::2].sum())
    elif segmentation:
        pixels = int(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))))
    return float(pixels or annotation["bbox"][2] * annotation["bbox"][3])


def transform_masks(masks: Masks, scale: np.ndarray | float, offset: np.ndarray | float = 0.0) -> Masks:
    """Map every point (x, y) to (x, y) * scale + offset; a negative scale mirrors."""
    scale, offset = np.broadcast_to(scale, 2), np.broadcast_to(offset, 2)
    mirrored = tuple(slice(None, None, -1 if s < 0 else None) for s in scale[::-1])
    polygons = [polygon for mask in masks if not isinstance(mask, Raster) for polygon in mask]
    points = np.concatenate([np.zeros((0, 2)), *polygons]) * scale + offset  # at once, which is faster
    ends = itertools.accumulate(map(len, polygons))
    moved = iter([points[end - len(polygon) : end] for polygon, end in zip(polygons, ends, strict=True)])
    transformed: Masks = []
    for mask in masks:
        if isinstance(mask, Raster):
            corners = mask.window.reshape(2, 2) * scale + offset
            window = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            transformed.append(Raster(mask.bitmap[mirrored], window))
        else:
            transformed.append([next(moved) for _ in mask])
    return transformed


def crop_masks(masks: Masks, boxes: np.ndarray, side: int) -> np.ndarray:
    """Rasterize the masks of n instances inside their `boxes` (n, 4): (n, side, side) uint8.

    No box may be empty. Polygons are rasterized by pycocotools.
    """
    crops = np.zeros((len(boxes), side, side), np.uint8)
    polygons: list[np.ndarray] = []
    instances: list[int] = []
    corners, scales = boxes[:, :2], side / (boxes[:, 2:] - boxes[:, :2])
    for i, mask in enumerate(masks):
        if isinstance(mask, Raster):
            crops[i] = _sample_raster(mask, boxes[i], side, side)
        else:
            polygons += [(polygon - corners[i]) * scales[i] for polygon in mask]
            instances += [i] * len(mask)
    if polygons:  # one call for all polygons of the image is faster
        bitmaps = coco_mask.decode(_encode_polygons(polygons, side, side))
        for i, bitmap in zip(instances, bitmaps.transpose(2, 0, 1), strict=True):
            crops[i] |= bitmap
    return crops


def rasterize_masks(masks: Masks, windows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the masks of n instances inside their `windows` (n, 4) in whole pixels: (y1 - y0, x1 - x0) uint8."""
    for mask, window in zip(masks, windows, strict=True):
        width, height = int(window[2] - window[0]), int(window[3] - window[1])
        if isinstance(mask, Raster):
            yield _sample_raster(mask, window, height, width)
        elif mask and width and height:
            polygons = [polygon - window[:2] for polygon in mask]
            yield coco_mask.decode(coco_mask.merge(_encode_polygons(polygons, height, width)))
        else:
            yield np.zeros((height, width), np.uint8)


def visible_boxes(masks: Masks, boxes: np.ndarray) -> np.ndarray:
    """Return the bounds (n, 4) of the masks of n instances, clipped to their `boxes` (n, 4).

    Bounds are whole pixels, except where the box cuts them. They are 0 for a mask without a pixel in its box.
    """
    windows = pixel_windows(boxes)
    bounds = np.zeros((len(boxes), 4))
    for row, box, window, bitmap in zip(bounds, boxes, windows, rasterize_masks(masks, windows), strict=True):
        xs, ys = np.flatnonzero(bitmap.any(axis=0)), np.flatnonzero(bitmap.any(axis=1))
        if len(xs):
            row[:2] = np.maximum(box[:2], window[:2] + np.array([xs[0], ys[0]]))
            row[2:] = np.minimum(box[2:], window[:2] + np.array([xs[-1], ys[-1]]) + 1)
    return bounds


def pixel_windows(boxes: np.ndarray) -> np.ndarray:
    """Return the whole pixels x0 y0 x1 y1 that `boxes` (..., 4) touch, int64; an empty window for an empty box."""
    low, high = np.floor(boxes[..., :2]), np.ceil(boxes[..., 2:])
    return np.concatenate([low, np.maximum(high, low)], axis=-1).astype(np.int64)


def _sample_raster(raster: Raster, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sample a bitmap at the centers of height x width cells of `box`, by nearest neighbor; 0 outside the bitmap."""
    indices, inside = [], []
    for axis, cells in ((0, width), (1, height)):
        centers = box[axis] + (np.arange(cells) + 0.5) / max(cells, 1) * (box[axis + 2] - box[axis])
        pixels = raster.bitmap.shape[1 - axis]
        low, high = raster.window[axis], raster.window[axis + 2]
        index = np.floor((centers - low) * (pixels / (high - low))).astype(np.intp)
        inside.append((index >= 0) & (index < pixels))
        indices.append(index)
    bitmap = raster.bitmap.take(indices[1], axis=0, mode="clip").take(indices[0], axis=1, mode="clip")
    return bitmap * (inside[1][:, None] & inside[0])


def _encode_polygons(polygons: list[np.ndarray], height: int, width: int) -> list[dict[str, Any]]:
    """Return the RLE of each polygon (p, 2) in an image of this size.

    pycocotools follows every edge in steps of a fifth of a pixel and counts them with 32 bits, so a corner at 1e9, or a
    box of a thousandth of its polygon, would take all memory. Polygons are therefore clipped far outside the image.
    """
    low, high = np.array([-_MAX_DISTANCE, -_MAX_DISTANCE]), np.array([width + _MAX_DISTANCE, height + _MAX_DISTANCE])
    points = np.concatenate(polygons)
    if np.any((points < low) | (points > high)):
        polygons = [_clip_polygon(polygon, low, high) for polygon in polygons]
    encoded: list[dict[str, Any]] = coco_mask.frPyObjects([p.ravel().tolist() for p in polygons], height, width)
    return encoded


def _clip_polygon(polygon: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Clip a polygon (p, 2) to the rectangle from `low` to `high` (Sutherland-Hodgman).

    Returns a degenerate polygon outside the image if nothing is left.
    """
    for axis, sign, limit in ((0, 1, high[0]), (0, -1, -low[0]), (1, 1, high[1]), (1, -1, -low[1])):
        beyond = sign * polygon[:, axis] - limit  # positive outside
        following, beyond_following = np.roll(polygon, -1, axis=0), np.roll(beyond, -1)
        crosses = (beyond > 0) != (beyond_following > 0)
        part = np.divide(beyond, beyond - beyond_following, out=np.zeros(len(beyond)), where=crosses)
        edges = polygon + part[:, None] * (following - polygon)
        pairs = np.stack([polygon, edges], axis=1).reshape(-1, 2)
        polygon = pairs[np.stack([beyond <= 0, crosses], axis=1).ravel()]
        if not len(polygon):
            return np.tile(low.astype(np.float64), (3, 1))
    return polygon
