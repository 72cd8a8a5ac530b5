"""Copy-paste (Ghiasi et al. 2021): instances of one picture laid over another, which they hide where they lie."""

from __future__ import annotations

import numpy as np

from mrcnn_jax.data.augment.geometry import bitmap_of, view, visible_boxes, whole
from mrcnn_jax.data.sample import Masks, Raster, Sample, select


def paste(sample: Sample, other: Sample, chosen: np.ndarray) -> Sample:
    """`sample` with the instances `chosen` (k,) of `other` laid over it, top left on top left, cut at its edges.

    What they hide of an instance is taken from its mask to the pixel; its box becomes that of what is left, and
    without a pixel left it is gone. A hidden keypoint stays labelled, as not visible (1), COCO's own meaning. The
    image of the result is a new array. Both need masks.
    """
    height, width = sample.image.shape[:2]
    other = view(select(other, chosen), whole((height, width)), (height, width))
    if other.masks is None or sample.masks is None:
        raise ValueError("instances without masks cannot be pasted")
    cover = np.zeros((height, width), np.uint8)
    for i in range(len(other.boxes)):
        x0, y0, x1, y1 = window = _pixels(other.boxes[i])
        cover[y0:y1, x0:x1] |= bitmap_of(other.masks, i, window)
    if not cover.any():
        return sample
    below = _hide(sample, sample.masks, cover)
    image = np.where(cover[..., None] > 0, other.image, sample.image)
    return _join(below._replace(image=image), other)


def _hide(sample: Sample, masks: Masks, cover: np.ndarray) -> Sample:
    """The instances of `sample`, with `masks`, without what lies under `cover` (h, w) uint8."""
    cut = {}
    for i, box in enumerate(sample.boxes):
        x0, y0, x1, y1 = window = _pixels(box)
        whole = bitmap_of(masks, i, window)
        left = whole & ~cover[y0:y1, x0:x1]
        if np.any(left != whole):
            cut[i] = Raster(i, left, np.array(window, np.float64))
    boxes, which = sample.boxes.copy(), np.array(list(cut), np.int64)
    masks = _replace(masks, cut)
    boxes[which] = visible_boxes(masks, boxes, which)
    gone = which[np.any(boxes[which, 2:] <= boxes[which, :2], axis=1)]
    hidden = _keypoints_under(sample.keypoints, cover)
    keypoints = sample.keypoints.copy()
    keypoints[hidden, 2] = 1
    keep = np.setdiff1d(np.arange(len(boxes)), gone)
    return select(sample._replace(boxes=boxes, masks=masks, keypoints=keypoints), keep)


def _keypoints_under(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Which labelled keypoints (n, K) lie on a pixel of `cover`."""
    height, width = cover.shape
    x = np.clip(keypoints[..., 0].astype(int), 0, width - 1)
    y = np.clip(keypoints[..., 1].astype(int), 0, height - 1)
    return (keypoints[..., 2] > 0) & (cover[y, x] > 0)


def _replace(masks: Masks, rasters: dict[int, Raster]) -> Masks:
    """The masks with those of some instances replaced."""
    stays = ~np.isin(masks.owners, list(rasters))
    return Masks(
        points=masks.points[np.repeat(stays, masks.lengths)],
        lengths=masks.lengths[stays],
        owners=masks.owners[stays],
        rasters=(*(raster for raster in masks.rasters if raster.owner not in rasters), *rasters.values()),
    )


def _join(first: Sample, second: Sample) -> Sample:
    """The image of `first` with the instances of both, those of `second` behind."""
    assert first.masks is not None, "pasting needs masks"
    assert second.masks is not None, "pasting needs masks"
    count = len(first.boxes)
    masks = Masks(
        points=np.concatenate([first.masks.points, second.masks.points]),
        lengths=np.concatenate([first.masks.lengths, second.masks.lengths]),
        owners=np.concatenate([first.masks.owners, second.masks.owners + count]),
        rasters=(
            *first.masks.rasters,
            *(raster._replace(owner=raster.owner + count) for raster in second.masks.rasters),
        ),
    )
    return Sample(
        image=first.image,
        boxes=np.concatenate([first.boxes, second.boxes]),
        classes=np.concatenate([first.classes, second.classes]),
        masks=masks,
        keypoints=np.concatenate([first.keypoints, second.keypoints]),
    )


def _pixels(box: np.ndarray) -> tuple[int, int, int, int]:
    """The whole pixels x0 y0 x1 y1 that a box touches."""
    low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
