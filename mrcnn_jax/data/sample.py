"""One image with its instances, as the augmentations see it, and how it becomes ground truth of a batch.

Coordinates are continuous pixels of the sample's own image (pixel i covers [i, i + 1]). Masks stay what they came as,
corners of polygons or a bitmap of a part of the picture, through any flip, crop and scale: they are rasterised once,
at the end, inside their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import rle
from mrcnn_jax.structures import GroundTruth

Annotation = dict[str, Any]
Size = Sequence[int] | np.ndarray  # height, width


class Raster(NamedTuple):
    """The mask of an instance as a bitmap of some part of the picture; outside of it the mask is 0."""

    owner: int  # which instance
    bitmap: np.ndarray  # (h, w) uint8, 0 or 1
    window: np.ndarray  # (4,) float64, x0 y0 x1 y1 of the part that it covers


class Masks(NamedTuple):
    """The masks of n instances: m polygons, and rasters for those that have none."""

    points: np.ndarray  # (p, 2) float64, the corners of all polygons in a row
    lengths: np.ndarray  # (m,) int64, how many corners each polygon has
    owners: np.ndarray  # (m,) int64, which instance each polygon is a part of
    rasters: tuple[Raster, ...] = ()


class Sample(NamedTuple):
    """An image and its n instances (no crowds)."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes: np.ndarray  # (n, 4) float64, x0 y0 x1 y1 inside the image
    classes: np.ndarray  # (n,) int32, 1..C
    masks: Masks | None  # None: of boxes only
    keypoints: np.ndarray  # (n, K, 3) float64: x, y, visibility; zeros where it is 0


def make_sample(
    image: np.ndarray,
    annotations: Sequence[Annotation],
    class_of: Mapping[int, int],
    size: Size,
    *,
    reduction: int = 1,
    masks: bool = True,
    num_keypoints: int = 0,
) -> Sample:
    """The sample of a decoded image (h, w, 3) and its checked COCO annotations; crowds are left out.

    size: height and width of the original; `image` may have been decoded at 1 / `reduction` of it, rounded up. Boxes
    are clipped to the picture. COCO gives the pixel that a keypoint lies on, counted from 0, so that the middle of
    this pixel is where it is: 1/2 is added (as Detectron2 does; torchvision does not, and loses one pixel in mirrored
    images), and `Prediction.to_coco` takes it away again. Keypoints outside the image count as not labelled.
    """
    instances = [a for a in annotations if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in instances], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, np.tile(np.asarray(size)[::-1], 2))
    outlines = _read_masks([a["segmentation"] for a in instances], boxes, size) if masks else None
    keypoints = _read_keypoints([a.get("keypoints") for a in instances], num_keypoints, size)
    keypoints[..., :2] /= reduction
    return Sample(
        image=image,
        boxes=boxes / reduction,
        classes=np.array([class_of[a["category_id"]] for a in instances], np.int32),
        masks=outlines and move_masks(outlines, 1 / reduction),
        keypoints=keypoints,
    )


def select(sample: Sample, keep: np.ndarray) -> Sample:
    """The instances `keep`, indices (k,) in increasing order; the image stays."""
    keep = np.asarray(keep, np.int64)
    masks = sample.masks
    if masks is not None:
        number = np.full(len(sample.boxes), -1)
        number[keep] = np.arange(len(keep))
        stays = number[masks.owners] >= 0
        masks = Masks(
            points=masks.points[np.repeat(stays, masks.lengths)],
            lengths=masks.lengths[stays],
            owners=number[masks.owners[stays]],
            rasters=tuple(r._replace(owner=int(number[r.owner])) for r in masks.rasters if number[r.owner] >= 0),
        )
    return Sample(sample.image, sample.boxes[keep], sample.classes[keep], masks, sample.keypoints[keep])


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


def crop_masks(masks: Masks, boxes: np.ndarray, side: int | tuple[int, int]) -> np.ndarray:
    """Rasters (n, height, width) uint8 of the masks of n instances, each inside its own of `boxes` (n, 4).

    `side`: height and width, or one number for both. What a polygon covers is decided as pycocotools does.
    """
    height, width = (side, side) if isinstance(side, int) else side
    crops = np.zeros((len(boxes), height, width), np.uint8)
    if len(masks.lengths):  # one call for all polygons of the image; those of one instance are joined
        owners = np.repeat(masks.owners, masks.lengths)
        extents = boxes[owners, 2:] - boxes[owners, :2]
        points = (masks.points - boxes[owners, :2]) * ((width, height) / extents)
        polygons = [p.ravel().tolist() for p in np.split(points, np.cumsum(masks.lengths)[:-1])]
        rasters = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width))
        for owner, bitmap in zip(masks.owners, rasters.transpose(2, 0, 1), strict=True):
            crops[owner] |= bitmap
    for raster in masks.rasters:
        crops[raster.owner] = _look_up(raster, boxes[raster.owner], height, width)
    return crops


def write(sample: Sample, truth: GroundTruth) -> None:
    """Fill the empty slots of one image (arrays of zeros, without a batch axis), in place.

    Of more instances than slots those with the largest boxes are kept, in their order; of equal ones the first.
    Masks are left out where `truth` has room for none (side 0), and keypoints likewise.
    """
    slots = len(truth.valid)
    if len(sample.boxes) > slots:
        extents = sample.boxes[:, 2:] - sample.boxes[:, :2]
        sample = select(sample, np.sort(np.argsort(-extents.prod(axis=1), kind="stable")[:slots]))
    count = len(sample.boxes)
    if not count:
        return
    truth.boxes[:count] = truth.mask_windows[:count] = sample.boxes
    truth.classes[:count] = sample.classes
    truth.valid[:count] = True
    if truth.keypoints.size:
        truth.keypoints[:count] = sample.keypoints
    if truth.masks.size:
        assert sample.masks is not None, "a data set without masks has no room for them"
        truth.masks[:count] = crop_masks(sample.masks, sample.boxes, truth.masks.shape[-1])


def _read_masks(segmentations: Sequence[Any], boxes: np.ndarray, size: Size) -> Masks:
    """Polygons as they are, and RLE as bitmaps of the whole pixels that their boxes (n, 4) touch."""
    polygons: list[np.ndarray] = []
    owners: list[int] = []
    rasters: list[Raster] = []
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            window = (*np.floor(boxes[i, :2]).astype(int), *np.ceil(boxes[i, 2:]).astype(int))
            bitmap = rle.crop(rle.runs(segmentation), int(size[0]), window)
            rasters.append(Raster(i, bitmap, np.array(window, np.float64)))
        else:
            polygons += [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
            owners += [i] * len(segmentation)
    points = np.concatenate(polygons) if polygons else np.zeros((0, 2))
    lengths = np.array([len(polygon) for polygon in polygons], np.int64)
    return Masks(points, lengths, np.array(owners, np.int64), tuple(rasters))


def _read_keypoints(keypoints: Sequence[Sequence[float] | None], count: int, size: Size) -> np.ndarray:
    """(n, K, 3) float64 from x, y, visibility of each of the K = `count` keypoints in a row, or nothing."""
    found = np.zeros((len(keypoints), count, 3))
    if not count:
        return found
    for row, flat in zip(found, keypoints, strict=True):
        if flat:
            row[:] = np.reshape(flat, (count, 3))
    found[..., :2] += 0.5
    inside = (found[..., :2] >= 0) & (found[..., :2] <= np.asarray(size)[::-1])
    found[~(inside.all(axis=-1) & (found[..., 2] > 0))] = 0
    return found


def _look_up(raster: Raster, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Raster (height, width) of a bitmap inside `box`: its pixel under the centre of each cell, 0 outside of it."""
    picked, inside = [], []
    for axis, cells in ((0, width), (1, height)):
        centres = box[axis] + (np.arange(cells) + 0.5) / cells * (box[axis + 2] - box[axis])
        pixels = raster.bitmap.shape[1 - axis]
        low, high = raster.window[axis], raster.window[axis + 2]
        index = np.floor((centres - low) * (pixels / (high - low))).astype(np.intp)
        inside.append((index >= 0) & (index < pixels))
        picked.append(np.clip(index, 0, pixels - 1))
    bitmap = raster.bitmap[picked[1][:, None], picked[0]]
    return bitmap * (inside[1][:, None] & inside[0])
