"""The masks of the instances of one image: corners of polygons, or a bitmap of a part of the picture.

They stay what they came as through any flip, crop and scale, so that nothing is lost on the way; rasterized they are at
the end, inside boxes or windows, never in the full frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import rle

_REACH = 4096  # cells beyond a raster up to which polygons are followed


class Raster(NamedTuple):
    """The mask of an instance as a bitmap of some part of the picture; outside of it the mask is 0."""

    owner: int  # which instance
    bitmap: np.ndarray  # (h, w) uint8, 0 or 1
    window: np.ndarray  # (4,) float64, x0 y0 x1 y1 of the part that it covers


class Masks(NamedTuple):
    """The masks of n instances: m polygons, and rasters of other instances. Owners never decrease.

    An instance that owns neither has no mask.
    """

    points: np.ndarray  # (p, 2) float64, the corners of all polygons in a row
    lengths: np.ndarray  # (m,) int64, how many corners each polygon has
    owners: np.ndarray  # (m,) int64, which instance each polygon is a part of
    rasters: tuple[Raster, ...] = ()

    def present(self, count: int) -> np.ndarray:
        """Which of `count` instances have a mask: (count,) bool."""
        found = np.zeros(count, bool)
        found[self.owners] = True
        found[[raster.owner for raster in self.rasters]] = True
        return found


def read_masks(segmentations: Sequence[Any], boxes: np.ndarray, height: int) -> Masks:
    """COCO's polygons as they are, and RLE as bitmaps of the whole pixels that their boxes (n, 4) touch.

    An empty list, or nothing, stands for an instance without a mask. height: of the picture. Boxes lie inside it.
    """
    polygons: list[np.ndarray] = []
    owners: list[int] = []
    rasters: list[Raster] = []
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            window = pixel_windows(boxes[i])
            bitmap = rle.crop(rle.runs(segmentation), height, tuple(window.tolist()))
            rasters.append(Raster(i, bitmap, window.astype(np.float64)))
        elif segmentation:
            polygons += [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
            owners += [i] * len(segmentation)
    points = np.concatenate(polygons) if polygons else np.zeros((0, 2))
    lengths = np.array([len(polygon) for polygon in polygons], np.int64)
    return Masks(points, lengths, np.array(owners, np.int64), tuple(rasters))


def area(annotation: dict[str, Any], height: int, width: int) -> float:
    """Square pixels of a checked annotation: the file's area, or else that of the mask, or else that of the box.

    height, width: of the image.
    """
    if annotation.get("area"):
        return float(annotation["area"])
    segmentation, pixels = annotation.get("segmentation"), 0
    if isinstance(segmentation, dict):
        pixels = int(rle.runs(segmentation)[1::2].sum())
    elif segmentation:
        pixels = int(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))))
    return float(pixels or annotation["bbox"][2] * annotation["bbox"][3])


def select_masks(masks: Masks, keep: np.ndarray, count: int) -> Masks:
    """The masks of the instances `keep`, indices (k,) in increasing order, out of `count`."""
    number = np.full(count, -1)
    number[keep] = np.arange(len(keep))
    stays = number[masks.owners] >= 0
    return Masks(
        points=masks.points[np.repeat(stays, masks.lengths)],
        lengths=masks.lengths[stays],
        owners=number[masks.owners[stays]],
        rasters=tuple(r._replace(owner=int(number[r.owner])) for r in masks.rasters if number[r.owner] >= 0),
    )


def replace_masks(masks: Masks, rasters: dict[int, Raster]) -> Masks:
    """The same with other masks for some instances, given by their owners."""
    stays = ~np.isin(masks.owners, list(rasters))
    others = [raster for raster in masks.rasters if raster.owner not in rasters]
    return Masks(
        points=masks.points[np.repeat(stays, masks.lengths)],
        lengths=masks.lengths[stays],
        owners=masks.owners[stays],
        rasters=tuple(sorted([*others, *rasters.values()], key=lambda raster: raster.owner)),
    )


def join_masks(first: Masks, second: Masks, count: int) -> Masks:
    """Both; the instances of `second` come behind the `count` of `first`."""
    behind = (raster._replace(owner=raster.owner + count) for raster in second.rasters)
    return Masks(
        points=np.concatenate([first.points, second.points]),
        lengths=np.concatenate([first.lengths, second.lengths]),
        owners=np.concatenate([first.owners, second.owners + count]),
        rasters=(*first.rasters, *behind),
    )


def move_masks(masks: Masks, scale: np.ndarray | float, offset: np.ndarray | float = 0.0) -> Masks:
    """Every point (x, y) goes to (x, y) * scale + offset; a negative scale mirrors."""
    scale, offset = np.broadcast_to(scale, 2), np.broadcast_to(offset, 2)
    mirrored = tuple(slice(None, None, -1 if s < 0 else None) for s in scale[::-1])
    rasters = []
    for raster in masks.rasters:
        corners = raster.window.reshape(2, 2) * scale + offset
        window = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        rasters.append(Raster(raster.owner, raster.bitmap[mirrored], window))
    return masks._replace(points=masks.points * scale + offset, rasters=tuple(rasters))


def crop_masks(masks: Masks, boxes: np.ndarray, side: int) -> np.ndarray:
    """Rasters (n, side, side) uint8 of the masks of n instances, each inside its own of `boxes` (n, 4), none empty.

    What a polygon covers is decided as pycocotools does.
    """
    crops = np.zeros((len(boxes), side, side), np.uint8)
    if len(masks.lengths):  # one call for all polygons of the image; those of one instance are joined
        owners = np.repeat(masks.owners, masks.lengths)
        extents = boxes[owners, 2:] - boxes[owners, :2]
        points = (masks.points - boxes[owners, :2]) * (side / extents)
        rasters = coco_mask.decode(_encode(points, masks.lengths, side, side))
        for owner, bitmap in zip(masks.owners, rasters.transpose(2, 0, 1), strict=True):
            crops[owner] |= bitmap
    for raster in masks.rasters:
        crops[raster.owner] = _look_up(raster, boxes[raster.owner], side, side)
    return crops


def bitmaps(masks: Masks, windows: np.ndarray) -> Iterator[np.ndarray]:
    """The masks of n instances, each inside its own of `windows` (n, 4) in whole pixels: (y1 - y0, x1 - x0) uint8."""
    first = np.searchsorted(masks.owners, np.arange(len(windows) + 1))  # polygon of each instance
    start = np.concatenate([[0], np.cumsum(masks.lengths)])[first]  # corner of each instance
    rasters = {raster.owner: raster for raster in masks.rasters}
    for i, window in enumerate(windows):
        width, height = int(window[2] - window[0]), int(window[3] - window[1])
        if i in rasters:
            yield _look_up(rasters[i], window, height, width)
        elif first[i] == first[i + 1] or not (width and height):
            yield np.zeros((height, width), np.uint8)
        else:
            points = masks.points[start[i] : start[i + 1]] - window[:2]
            yield coco_mask.decode(
                coco_mask.merge(_encode(points, masks.lengths[first[i] : first[i + 1]], height, width))
            )


def visible_boxes(masks: Masks, boxes: np.ndarray) -> np.ndarray:
    """Bounds (n, 4) of the masks of n instances inside their `boxes` (n, 4), in whole pixels or less.

    Without a pixel inside its box the bounds of an instance are empty: four times 0.
    """
    windows = pixel_windows(boxes)
    found = np.zeros((len(boxes), 4))
    for row, box, window, bitmap in zip(found, boxes, windows, bitmaps(masks, windows), strict=True):
        xs, ys = np.flatnonzero(bitmap.any(axis=0)), np.flatnonzero(bitmap.any(axis=1))
        if len(xs):
            row[:2] = np.maximum(box[:2], window[:2] + np.array([xs[0], ys[0]]))
            row[2:] = np.minimum(box[2:], window[:2] + np.array([xs[-1], ys[-1]]) + 1)
    return found


def pixel_windows(boxes: np.ndarray) -> np.ndarray:
    """The whole pixels x0 y0 x1 y1 that `boxes` (..., 4) touch, int64; without width or height where a box is empty."""
    low, high = np.floor(boxes[..., :2]), np.ceil(boxes[..., 2:])
    return np.concatenate([low, np.maximum(high, low)], axis=-1).astype(np.int64)


def _look_up(raster: Raster, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Raster (height, width) of a bitmap inside `box`: its pixel under the center of each cell, 0 outside of it."""
    picked, inside = [], []
    for axis, cells in ((0, width), (1, height)):
        centers = box[axis] + (np.arange(cells) + 0.5) / max(cells, 1) * (box[axis + 2] - box[axis])
        pixels = raster.bitmap.shape[1 - axis]
        low, high = raster.window[axis], raster.window[axis + 2]
        index = np.floor((centers - low) * (pixels / (high - low))).astype(np.intp)
        inside.append((index >= 0) & (index < pixels))
        picked.append(index)
    bitmap = raster.bitmap.take(picked[1], axis=0, mode="clip").take(picked[0], axis=1, mode="clip")
    return bitmap * (inside[1][:, None] & inside[0])


def _encode(points: np.ndarray, lengths: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
    """RLE of the polygons, of `lengths` (m,) corners in `points` (p, 2), in a picture of this size.

    pycocotools walks along every edge in steps of a fifth of a pixel, wherever it leads, and counts them with 32 bits:
    a corner at 1e9, or a box that is a thousandth of its polygon, would take all memory. So polygons are cut off far
    away from the picture; what is in it stays.
    """
    low, high = np.array([-_REACH, -_REACH]), np.array([width + _REACH, height + _REACH])
    polygons = np.split(points, np.cumsum(lengths)[:-1])
    if np.any((points < low) | (points > high)):
        polygons = [_cut(polygon, low, high) for polygon in polygons]
    encoded: list[dict[str, Any]] = coco_mask.frPyObjects([p.ravel().tolist() for p in polygons], height, width)
    return encoded


def _cut(polygon: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The part of a polygon (p, 2) from `low` to `high` (Sutherland and Hodgman); of none, a point outside."""
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
